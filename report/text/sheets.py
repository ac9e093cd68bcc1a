"""What people read of a table as sheets of text with marks; the overview, report/text/details.py has the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from report.tables.comparison import stem
from report.tables.tables import TableData
from report.text.numbers import mean_sd, none, number, percent, with_activations

if TYPE_CHECKING:
    import pandas as pd

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Sheet:
    """A table of text, by rows.  The first name is of the methods, categories or questions that the rows stand for."""

    title: str
    names: tuple[str, ...]
    rows: tuple[dict[str, str], ...]  # text by name
    signs: tuple[dict[str, str], ...]  # "best", "tied" or "" by name
    groups: Groups  # names that stay side by side where a sheet is too wide; the first one goes with each

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The text as a pandas frame."""
        return self._frame(self.rows)

    @cached_property
    def marks(self) -> pd.DataFrame:
        """The signs as a pandas frame of the same shape."""
        return self._frame(self.signs)

    def _frame(self, rows: Sequence[dict]) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(rows, columns=list(self.names), dtype=object)


def sheet(title: str, rows: Sequence[dict], groups: Callable[[Sequence[str]], Groups] | None = None) -> Sheet:
    """Rows of text, or of (text, sign), as a sheet; what a row lacks is "no data", dashes alone are dropped."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [{name: row.get(name, "no data") for name in names} for row in rows]
    pairs = [{name: cell if isinstance(cell, tuple) else (cell, "") for name, cell in row.items()} for row in cells]
    names = [name for name in names if name == names[0] or any(row[name][0] != "-" for row in pairs)]
    text, signs = (tuple({name: row[name][i] for name in names} for row in pairs) for i in (0, 1))
    return Sheet(title=title, names=tuple(names), rows=text, signs=signs,
                 groups=groups(names[1:]) if groups else tuple((name,) for name in names[1:]))


def closed_by(*ends: str) -> Callable[[Sequence[str]], Groups]:
    """Groups of names that end with these."""
    def groups(names: Sequence[str]) -> Groups:
        edges = [0, *(i + 1 for i, name in enumerate(names) if name in ends or i == len(names) - 1)]
        return tuple(tuple(names[a:b]) for a, b in pairwise(edges) if a < b)
    return groups


def overview(table: TableData) -> pd.DataFrame:
    """The overview as a frame of text."""
    return overview_sheet(table).frame


def overview_sheet(table: TableData) -> Sheet:
    """One row a method: bits, and per data set its main metric, the gold log-likelihood and its paired change.

    Where a method has several seeds on a data set, their mean and sd are shown; where it has one, ΔLL is shown with
    half its bootstrap interval.
    """
    labels = {dataset: _main(table.facts[dataset]["metrics"]) for dataset in table.datasets}
    owners = {f"{dataset} {name}": dataset for dataset in labels for name in (*labels[dataset].values(), "LL", "ΔLL")}
    rows = []
    for method in dict.fromkeys(row["method"] for row in table.rows):
        mine = [row for row in table.rows if row["method"] == method]
        bits = with_activations(_range([row["bits"] for row in mine]), mine[0])
        shown = {"method": method + _seeds(table, mine), "bits": bits}
        for dataset in labels:
            shown |= _of_dataset(dataset, [row for row in mine if row["dataset"] == dataset], labels[dataset])
        rows.append({name: shown[name] for name in ("method", "bits", *owners) if name in shown})

    def by_dataset(names: Sequence[str]) -> Groups:
        sides = [tuple(name for name in names if owners.get(name) == dataset) for dataset in (None, *labels)]
        return tuple(filter(None, sides))

    return sheet(table.title, rows, by_dataset)


def _main(metrics: dict[str, str]) -> dict[str, str]:
    """A data set's main metric, which is its first, with its label."""
    return dict(list(metrics.items())[:1])


def _of_dataset(dataset: str, rows: Sequence[dict], main: dict[str, str]) -> dict:
    """A method's text for one data set; nothing where it has no row."""
    if not rows:
        return {}
    cells = {}
    for metric, label in main.items():
        show = percent if metric in ("accuracy", "f1") else lambda value: number(value, 3)
        cells[f"{dataset} {label}"] = _mean_and_mark(rows, stem(metric), show)
    cells[f"{dataset} LL"] = _mean_and_mark(rows, "loglik", lambda value: number(value, 2))
    return cells | {f"{dataset} ΔLL": _paired(rows)}


def _mean_and_mark(rows: Sequence[dict], name: str, show) -> tuple[str, str]:
    return mean_sd([row[name] for row in rows], show), rows[0][f"best_{name}"]


def _paired(rows: Sequence[dict]) -> str:
    """The paired change against full precision: with sd over seeds, or ± half the interval of the only one."""
    if len(rows) > 1:
        return mean_sd([row["d_loglik"] for row in rows], lambda value: f"{value:+.2f}", lambda value: f"{value:.2f}")
    row = rows[0]
    if none(row["d_loglik"]):
        return "-"
    return f"{row['d_loglik']:+.2f} ±{(row['d_loglik_high'] - row['d_loglik_low']) / 2:.2f}"


def _seeds(table: TableData, rows: Sequence[dict]) -> str:
    """How many seeds a method has on each data set, in words; nothing where it has one everywhere."""
    counts = [sum(row["dataset"] == dataset for row in rows) for dataset in table.datasets]
    counts = [count for count in counts if count]
    if max(counts) == 1:
        return ""
    return f" ({counts[0]} seeds)" if len(set(counts)) == 1 else f" ({min(counts)}–{max(counts)} seeds)"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low}–{high}"
