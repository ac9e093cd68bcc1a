"""Which cells and rows print_results.py shows, and in which order.

Model, data set, budget and run type choose the tables; methods and seeds choose rows of tables that were computed
whole: p values, families and marks never depend on what is shown.
"""

from collections.abc import Sequence
from dataclasses import replace

from core.errors import UserError, did_you_mean
from report.records import Result
from report.tables.tables import TableData

# what a filter may name a cell by; rows without a budget stand beside every one
CELLS = {"model": lambda r: {r.model.name, r.model.given}, "dataset": lambda r: {r.dataset},
         "run_type": lambda r: {r.run_type}, "avg_bits": lambda r: {r.avg_bits} - {None}}
SORTS = ("bits", "accuracy", "loglik", "method")


def choose(results: Sequence[Result], wanted: dict[str, Sequence | None]) -> list[Result]:
    """The cells of these models (by name, or as they were given), data sets, budgets and run types."""
    for name, values in wanted.items():
        if values:
            known(name, values, {value for r in results for value in CELLS[name](r)} - {""})
            results = [r for r in results if not CELLS[name](r) or CELLS[name](r) & set(values)]
    if results and wanted.get("avg_bits") and all(r.avg_bits is None for r in results):
        given = " ".join(f"{bits:g}" for bits in wanted["avg_bits"])
        raise UserError(f"--avg_bits {given} leaves no row with a budget; drop a filter")
    if not results and any(wanted.values()):
        given = " ".join(f"--{name} {' '.join(map(str, values))}" for name, values in wanted.items() if values)
        raise UserError(f"no cell fits {given} together; drop one of these filters")
    return list(results)


def rows_of(tables: Sequence[TableData], methods: Sequence[str] | None, seeds: Sequence[int] | None) -> list[TableData]:
    """The same tables with these rows only."""
    wanted = {name: values for name, values in (("method", methods), ("seed", seeds)) if values}
    for name, values in wanted.items():
        known(name, values, {row[name] for table in tables for row in table.rows})

    def fits(row: dict) -> bool:
        return all(row[name] in values for name, values in wanted.items())

    shown = [replace(table, rows=tuple(filter(fits, table.rows)), missing=tuple(filter(fits, table.missing)))
             for table in tables]
    return [table for table in shown if table.rows or table.missing]


def sort_tables(tables: Sequence[TableData], by: str | None) -> list[TableData]:
    """The same tables, rows ordered by the mean of a number over data sets and seeds; methods without one last."""
    if not by:
        return list(tables)
    name = by.removeprefix("-")
    if name not in SORTS:
        raise UserError(f"--sort is {by!r}{did_you_mean(name, SORTS)}; use one of: {', '.join(SORTS)}, with - in front "
                        "for the largest first")
    return [replace(table, rows=_sorted(table, name, by.startswith("-"))) for table in tables]


def _sorted(table: TableData, name: str, falling: bool) -> tuple[dict, ...]:
    values: dict[str, list[float]] = {}
    for row in table.rows:
        there = name != "method" and row[name] is not None and row[name] == row[name]
        values.setdefault(row["method"], []).extend([row[name]] if there else [])
    if name == "method":
        order = sorted(values, key=str.lower, reverse=falling)
    else:
        means = {method: sum(numbers) / len(numbers) for method, numbers in sorted(values.items()) if numbers}
        order = sorted(means, key=means.get, reverse=falling) + sorted(values.keys() - means.keys())
    places = {dataset: i for i, dataset in enumerate(table.datasets)}
    return tuple(sorted(table.rows, key=lambda row: (places[row["dataset"]], order.index(row["method"]), row["seed"])))


def known(name: str, values: Sequence, there: set) -> None:
    """A value that nothing has is an error that says what there is."""
    for value in values:
        if value not in there:
            hint = did_you_mean(value, sorted(there)) if isinstance(value, str) else ""
            have = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(there)) or "none"
            raise UserError(f"--{name} {value} has no results here{hint}; there are: {have}")
