"""The answer in words: a card a data set and budget with its winner, its margin, and who is not told apart from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from report.figures.frames import SHARES, over_seeds, plain
from report.figures.style import Look, small
from report.tables.comparison import stem
from report.tables.tables import TableData
from report.text.lines import ALL_CONTROLS
from report.text.numbers import percent, signed

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
    return [_card(table, dataset, look) for dataset in table.datasets]


def _card(table: TableData, dataset: str, look: dict[str, Look]) -> Card:
    rows, facts = table.of(dataset), table.facts[dataset]
    best, tied = _ranks(rows, "loglik")
    if not best:
        return Card(plain(dataset), "", False, (NO_RANKS,))
    name, rivals = best[0]["method"], facts["families"]["best"]
    control = name.partition("[")[0] in ALL_CONTROLS
    drop = _span(best, "d_loglik", signed)
    loss = f"{drop} nats a token against full precision." if drop else "full precision has no result here."
    more = [line for line in (_main(rows, facts["metrics"], rivals), _basis(best, facts)) if line]
    if len(tied) == rivals:
        who = plain(name) + (" (a control)" if control else "")
        first = f"No row at equal bits is told apart from the first, {who}: {loss}"
        return Card(plain(dataset), "No difference shown", False, (first, _margin(best, name), *more))
    alone = "Every other row at equal bits is told apart from it."
    ties = f"Not told apart from it: {_listed(tied, name)}." if tied else alone
    first = f"Keeps the most gold log-likelihood at equal bits: {loss}"
    lines = (first, _margin(best, name), ties, *more)
    return Card(plain(dataset), plain(name), control, lines, marker=small(look[name].drawing()))


def _ranks(rows: Sequence[dict], name: str) -> tuple[list[dict], list[str]]:
    """The rows of the best method, one a seed, and the names of those that cannot be told from it."""
    marked = [row for row in rows if row.get(f"best_{name}") in ("best", "tied")]
    first = next((row["method"] for row in marked if row[f"best_{name}"] == "best"), None)
    return ([row for row in marked if row["method"] == first],
            [method for method in dict.fromkeys(row["method"] for row in marked) if method != first])


def _span(rows: Sequence[dict], name: str, show: Callable) -> str:
    """A value with its interval; of several seeds their mean and the span of all intervals; empty without any."""
    value, low, high = over_seeds(rows, name)
    return "" if value is None else f"{show(value)} [{show(low)}, {show(high)}]"


def _margin(best: Sequence[dict], name: str) -> str:
    """The lead over uniform bits."""
    if name == "uniform":
        return "No method keeps more than uniform bits."
    lead = _span([row for row in best if row["u_equal_bits"]], "u_loglik", signed)
    if not lead:
        return "Uniform bits have no result at equal bits, so there is no margin."
    return f"{lead} nats a token ahead of uniform bits."


def _listed(names: Sequence[str], best: str) -> str:
    """A few names, or how many they are and whether uniform bits are among them."""
    if len(names) <= NAMED:
        return ", ".join(map(plain, names))
    uniform = "" if best == "uniform" else f", uniform {'among' if 'uniform' in names else 'not among'} them"
    return f"{len(names)} rows{uniform}"


def _main(rows: Sequence[dict], metrics: dict[str, str], rivals: int) -> str:
    """The same by the task's main metric, in one line."""
    metric, label = next(iter(metrics.items()))
    best, tied = _ranks(rows, stem(metric))
    if not best:
        return ""
    name = best[0]["method"]
    share = metric in SHARES
    value = _span(best, stem(metric), percent if share else lambda number: f"{number:.3f}") + (" %" if share else "")
    most = f"{plain(name)} with {value}"
    what = "accuracy" if metric == "accuracy" else plain(label)
    if len(tied) == rivals:
        return f"By {what} no row is told apart from the first, {most}."
    return f"Highest {what}: {most}" + (f"; not told apart: {_listed(tied, name)}." if tied else ".")


def _basis(best: Sequence[dict], facts: dict) -> str:
    """How much it rests on."""
    seeds, power = len(best), (facts["power"] or {}).get("gold_loglik")
    known = f"; they can show a difference of {power:.2f} nats" if power is not None else ""
    several = f"; mean of {seeds} seeds and span of their intervals" if seeds > 1 else ""
    return f"{best[0]['n']} documents{known}{several}."
