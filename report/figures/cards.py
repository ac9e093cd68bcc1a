"""The answer in words: a card a data set and budget with its winner, its margin, and who is not told apart from it."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from report.figures.frames import plain
from report.figures.style import Look, small
from report.tables.tables import TableData
from report.text.numbers import nats, percent
from report.text.sheets import ALL_CONTROLS

LEGEND = ("Cards: the winner is the row at equal bits with the highest mean gold log-likelihood. In brackets: 95 % "
          "intervals of that one difference. Told apart: paired sign-flip test over documents, 5 %, Holm-corrected "
          "over all rows compared with the best, so a row may be tied although its own interval leaves out zero. A "
          "control sees neither the task nor the data.")
NO_RANKS = "No winner: fewer than two rows stand at equal bits here, so nothing is ranked."
NAMED = 5  # more rows than this are counted, not named


@dataclass(frozen=True)
class Card:
    """What one data set of a table says."""

    dataset: str
    winner: str  # or that there is none
    control: bool  # whether the winner sees neither task nor data
    lines: tuple[str, ...]
    marker: str = ""  # SVG


def cards(table: TableData, look: dict[str, Look]) -> list[Card]:
    """One card a data set, in the table's order."""
    return [_card(table.frame[table.frame["dataset"] == d], table.facts[d], look) for d in table.datasets]


def _card(frame: pd.DataFrame, facts: dict, look: dict[str, Look]) -> Card:
    dataset = plain(frame["dataset"].iloc[0])
    best, tied = _ranks(frame, "best_loglik")
    if not len(best):
        return Card(dataset, "", False, (NO_RANKS,))
    name, rivals = best["method"].iloc[0], facts["families"]["best"]
    control = name.partition("[")[0] in ALL_CONTROLS
    drop = _span(best, "d_loglik", nats)
    loss = f"{drop} nats a token against full precision." if drop else "full precision has no result here."
    more = [line for line in (_accuracy(frame, rivals), _basis(best, facts)) if line]
    if len(tied) == rivals:
        who = plain(name) + (" (a control)" if control else "")
        first = f"No row at equal bits is told apart from the first, {who}: {loss}"
        return Card(dataset, "No difference shown", False, (first, _margin(best, name), *more))
    alone = "Every other row at equal bits is told apart from it."
    ties = f"Not told apart from it: {_listed(tied, name)}." if tied else alone
    first = f"Keeps the most gold log-likelihood at equal bits: {loss}"
    lines = (first, _margin(best, name), ties, *more)
    return Card(dataset, plain(name), control, lines, marker=small(look[name].drawing()))


def _ranks(frame: pd.DataFrame, column: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the best method, one a seed, and the names of those that cannot be told from it."""
    best = frame[frame[column] == "best"]
    best = best[best["method"] == best["method"].iloc[0]] if len(best) else best
    others = frame.loc[frame[column].isin(["best", "tied"]), "method"]
    return best, [m for m in dict.fromkeys(others) if m not in set(best["method"])]


def _span(rows: pd.DataFrame, name: str, show: Callable) -> str:
    """A value with its interval; of several seeds their mean and the span of all intervals; empty without any."""
    rows = rows[rows[name].notna()]
    if not len(rows):
        return ""
    return f"{show(rows[name].mean())} [{show(rows[f'{name}_low'].min())}, {show(rows[f'{name}_high'].max())}]"


def _margin(best: pd.DataFrame, name: str) -> str:
    """The lead over uniform bits."""
    if name == "uniform":
        return "No method keeps more than uniform bits."
    lead = _span(best[best["u_equal_bits"].eq(True)], "u_loglik", nats)
    if not lead:
        return "Uniform bits have no result at equal bits, so there is no margin."
    return f"{lead} nats a token ahead of uniform bits."


def _listed(names: list[str], best: str) -> str:
    """A few names, or how many they are and whether uniform bits are among them."""
    if len(names) <= NAMED:
        return ", ".join(map(plain, names))
    uniform = "" if best == "uniform" else f", uniform {'among' if 'uniform' in names else 'not among'} them"
    return f"{len(names)} rows{uniform}"


def _accuracy(frame: pd.DataFrame, rivals: int) -> str:
    """The same by accuracy, in one line."""
    best, tied = _ranks(frame, "best_accuracy")
    if not len(best):
        return ""
    name = best["method"].iloc[0]
    most = f"{plain(name)} with {_span(best, 'accuracy', percent)} %"
    if len(tied) == rivals:
        return f"Accuracy tells no row apart from the first, {most}."
    return f"Most accurate: {most}" + (f"; not told apart: {_listed(tied, name)}." if tied else ".")


def _basis(best: pd.DataFrame, facts: dict) -> str:
    """How much it rests on."""
    seeds, power = best["seed"].nunique(), (facts["power"] or {}).get("gold_loglik")
    shown = f"; they can show a difference of {power:.2f} nats" if power is not None else ""
    several = f"; mean of {seeds} seeds and span of their intervals" if seeds > 1 else ""
    return f"{int(best['n'].max())} documents{shown}{several}."
