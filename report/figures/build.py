"""Every figure of a part, in the order of the page."""

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
    return [*(forest_figure(part, t, i) for i, t in enumerate(part.tables)), curve_figure(part),
            *(draw(part, b, i) for draw in (bit_figure, agreement_figure) for i, b in enumerate(budgets(part))),
            *category_figures(part), *_circuits(part), time_figure(part)]


def _circuits(part: Part) -> list[Figure]:
    """Faithfulness curves, where the part has the cells of any."""
    families = faithfulness(part.members)
    return [faithfulness_figure(families)] if families else []
