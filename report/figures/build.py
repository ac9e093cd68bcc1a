"""Every figure of a part, in the order of the page."""

from collections.abc import Callable

from report.figures.bars import category_figures, time_figure
from report.figures.curves import curve_figure
from report.figures.faithfulness import faithfulness_figure
from report.figures.forest import forest_figure
from report.figures.frames import Part, budgets
from report.figures.maps import bit_figure
from report.figures.matrices import agreement_figure
from report.figures.style import Figure
from report.tables.faithfulness import faithfulness


def figures(part: Part) -> list[Figure]:
    """The answer first: the forests of all budgets, then what a bit buys, where the bits go, and the rest."""
    return [figure for draw in drawers(part).values() for figure in draw()]


def drawers(part: Part) -> dict[str, Callable[[], list[Figure]]]:
    """The same figures by their words, drawn when they are called: some take seconds."""
    known: dict[str, Callable[[], list[Figure]]] = {}
    for i, table in enumerate(part.tables):
        known[f"Which method keeps the most{_at(table.about['avg_bits'])}"] = (
            lambda table=table, i=i: [forest_figure(part, table, i)])
    known["What a stored bit buys"] = lambda: [curve_figure(part)]
    for words, draw in (("Where the bits are spent", bit_figure), ("Which methods agree", agreement_figure)):
        for i, budget in enumerate(budgets(part)):
            known[words + _at(budget)] = lambda draw=draw, budget=budget, i=i: [draw(part, budget, i)]
    known["Which kinds of questions are lost"] = lambda: category_figures(part)
    if families := faithfulness(part.members):
        known["How faithful a circuit is"] = lambda: [faithfulness_figure(families)]
    return known | {"What took the time": lambda: [time_figure(part)]}


def _at(budget: float | None) -> str:
    return "" if budget is None else f", at {budget:g} bits"

