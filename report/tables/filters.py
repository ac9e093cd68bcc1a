"""Which cells and rows print_results.py shows, and in which order.

Model, data set, budget and run type choose the tables; methods and seeds choose rows of tables that were computed whole:
p values, families and marks never depend on what is shown.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from core.errors import UserError
from core.registry import did_you_mean
from report.records import Result
from report.tables.tables import TableData

CELLS = {"model": lambda r: r.model.name, "dataset": lambda r: r.dataset, "avg_bits": lambda r: r.avg_bits, "run_type": lambda r: r.run_type}
SORTS = ("bits", "accuracy", "loglik", "method")


def choose(results: list[Result], wanted: dict[str, Sequence | None]) -> list[Result]:
    """The cells of these models, data sets, budgets and run types; rows without a budget stand beside every one."""
    for name, values in wanted.items():
        if values:
            _known(name, values, {CELLS[name](r) for r in results} - {None})
            results = [r for r in results if CELLS[name](r) in values or CELLS[name](r) is None]
    if results and wanted.get("avg_bits") and all(r.avg_bits is None for r in results):
        raise UserError(f"--avg_bits {' '.join(f'{b:g}' for b in wanted['avg_bits'])} leaves no row with a budget; drop a filter")
    if not results and any(wanted.values()):
        given = " ".join(f"--{name} {' '.join(map(str, values))}" for name, values in wanted.items() if values)
        raise UserError(f"no cell fits {given} together; drop one of these filters")
    return results


def rows_of(tables: list[TableData], methods: Sequence[str] | None, seeds: Sequence[int] | None) -> list[TableData]:
    """The same tables with these rows only."""
    full = [t for t in tables if len(t.frame)]
    for name, column, values in (("method", "method", methods), ("seed", "seed", seeds)):
        if values:
            _known(name, values, {v for t in full for v in t.frame[column].tolist()})
    out = []
    for table in tables:
        frame = table.frame
        if len(frame):
            frame = frame[(frame["method"].isin(methods) if methods else True) & (frame["seed"].isin(seeds) if seeds else True)] \
                if methods or seeds else frame
        missing = tuple(m for m in table.missing if (not methods or m["method"] in methods) and (not seeds or m["seed"] in seeds))
        if len(frame) or missing:
            out.append(replace(table, frame=frame.reset_index(drop=True), missing=missing))
    return out


def sort_tables(tables: list[TableData], by: str | None) -> list[TableData]:
    """The same tables, rows ordered by a column's mean over data sets and seeds; methods without a value last."""
    if not by:
        return tables
    column = by.removeprefix("-")
    if column not in SORTS:
        raise UserError(f"--sort is {by!r}{did_you_mean(column, SORTS)}; use one of: {', '.join(SORTS)}, with - in front for the largest first")
    return [replace(table, frame=_sorted(table.frame, column, by.startswith("-"))) if len(table.frame) else table for table in tables]


def _sorted(frame: pd.DataFrame, column: str, falling: bool) -> pd.DataFrame:
    keys = frame["method"].str.lower() if column == "method" else frame.groupby("method")[column].transform("mean")
    first = {dataset: i for i, dataset in enumerate(frame["dataset"].unique())}
    order = pd.DataFrame({"dataset": frame["dataset"].map(first), "key": keys, "method": frame["method"], "seed": frame["seed"]})
    order = order.sort_values(["dataset", "key", "method", "seed"], ascending=[True, not falling, True, True], kind="stable")
    return frame.loc[order.index].reset_index(drop=True)


def _known(name: str, values: Sequence, there: set) -> None:
    """A value that nothing has is an error that says what there is."""
    for value in values:
        if value not in there:
            hint = did_you_mean(value, sorted(there)) if isinstance(value, str) else ""
            have = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(there)) or "none"
            raise UserError(f"--{name} {value} has no results here{hint}; there are: {have}")
