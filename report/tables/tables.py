"""Tables out of results: one frame, several coats.

A table holds the cells that may be compared: same model, same settings, same budget.  fp16, native and
other rows without a budget stand in every table of their model and settings, with their own bits.
What is computed of each data set's rows is in report/tables/comparison.py; a table also knows which of its cells are missing.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from core.digest import digest
from core.errors import UserError
from report.records import Result, load_results
from report.tables.comparison import Documents, column, dataset_order


@dataclass(frozen=True)
class TableData:
    """One table: its title, a row a cell, and what must be said below it."""

    title: str
    frame: pd.DataFrame  # one row a (method, seed, dataset), numbers unrounded
    said: tuple[str, ...]  # about data sets and bits
    about: dict  # model, machine, run type, settings, budget
    facts: dict[str, dict]  # by data set: documents, sizes of Holm's families, power, accuracy by category
    missing: tuple[dict, ...]  # cells that have no result or failed

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that have rows, in the table's order."""
        return tuple(self.frame["dataset"].unique()) if len(self.frame) else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said below the table: the cells that it lacks, then the rest."""
        return (*_missing_lines(self.missing, len(self.frame) + len(self.missing)), *self.said)


def tables(folder: Path) -> list[TableData]:
    """Every table that the results folder holds, newest settings first."""
    return group(load_results(folder))


def tables_of(folder: Path, results: list[Result]) -> list[TableData]:
    """The tables of the cells just run, read back from disk; not those of the same cells under other settings."""
    asked = {digest(r.settings) for r in results}
    return group([r for r in load_results(folder, {r.cell for r in results}) if digest(r.settings) in asked])


def comparable(results: list[Result]) -> list[list[Result]]:
    """Cells in groups of one model, machine and settings, the newest group first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.conditions, []).append(result)
    return sorted(groups.values(), key=lambda g: max(r.age for r in g), reverse=True)


def group(results: list[Result]) -> list[TableData]:
    """Sort cells into the tables in which they may be compared."""
    out, documents = [], Documents()
    for members in comparable(results):
        budgets = sorted({r.avg_bits for r in members if r.avg_bits is not None}) or [None]
        out += [one_table([r for r in members if r.avg_bits in (bits, None)], bits, documents) for bits in budgets]
    return out


def one_table(members: list[Result], bits: float | None, documents: Documents) -> TableData:
    """Compare the cells of one (model, settings, budget)."""
    absent, fine = missing(members), [r for r in members if r.ok]
    rows, facts, notes = [], {}, []
    for dataset in sorted({r.dataset for r in fine}, key=dataset_order):
        cells = [r for r in fine if r.dataset == dataset]
        newest = max(cells, key=lambda r: r.age).asked
        kept = [r for r in cells if r.asked == newest]
        if len(kept) < len(cells):
            notes.append(f"{dataset}: {len(cells) - len(kept)} cells left out, they were asked other documents or in other batches; run them again")
        kept, twice = _newest_of_each(kept)
        notes += [f"{dataset}: an older cell of {name} left out; it differs in what the settings do not say, such as the version that made it"
                  for name in twice]
        found, facts[dataset], said = column(kept, documents)
        rows += found
        notes += said + [f"{dataset}: {r.data_note}" for r in kept[:1] if r.data_note]
        lacks = [name for name in ("fp16", "uniform") if name not in {r.name for r in kept}]
        notes += [f"{dataset}: {name} has no result, so nothing is compared with it" for name in lacks]
        if len({r.seed for r in kept if (r.solver_calibration or {}).get("whole_pool")}) > 1:
            notes.append(f"{dataset}: --calib_tokens took every calibration document, so all seeds read the same ones; their sd says little")
    head = members[0]
    title = f"{head.model.name} ({head.model.dtype}), {head.run_type} run, {head.settings.get('data_source')} data"
    title += f", at most {bits:g} stored bits a weight" if bits is not None else ""
    frame = pd.DataFrame(rows)
    if len(frame):
        frame = frame.sort_values(["dataset_order", "order", "method", "seed"], kind="stable").drop(columns=["dataset_order", "order"])
    about = {"model": asdict(head.model), "machine": head.machine, "run_type": head.run_type, "settings": head.settings, "avg_bits": bits}
    return TableData(title, frame.reset_index(drop=True), tuple(notes), about, facts, tuple(absent))


def _newest_of_each(cells: list[Result]) -> tuple[list[Result], list[str]]:
    """One cell for each method and seed, and the names of those that had more."""
    newest: dict[tuple[str, int], Result] = {}
    for cell in sorted(cells, key=lambda r: r.age):
        newest[cell.name, cell.seed] = cell
    kept = {cell.file for cell in newest.values()}
    return [c for c in cells if c.file in kept], sorted({c.name for c in cells if c.file not in kept})


def missing(members: list[Result]) -> list[dict]:
    """The cells of a table that have no result: every (method, seed) that it knows, on every data set that it knows; failed ones say why."""
    datasets = sorted({r.dataset for r in members}, key=dataset_order)
    there = {(r.name, r.seed, r.dataset): r for r in members}
    out = []
    for method, seed in dict.fromkeys((r.name, r.seed) for r in members):
        for dataset in datasets:
            cell = there.get((method, seed, dataset))
            if cell is None or not cell.ok:
                out.append({"method": method, "seed": seed, "dataset": dataset, "error": cell.error if cell else None})
    return out


def _missing_lines(found: tuple[dict, ...], cells: int) -> list[str]:
    """What is missing in words: one line a method that has no result somewhere, one a failed cell."""
    lines = [f"FAILED: {m['method']} on {m['dataset']}, seed {m['seed']}: {m['error']}" for m in found if m["error"] is not None]
    absent: dict[tuple[str, tuple], list[str]] = {}
    for method, seed in dict.fromkeys((m["method"], m["seed"]) for m in found if m["error"] is None):
        where = tuple(m["dataset"] for m in found if (m["method"], m["seed"]) == (method, seed) and m["error"] is None)
        absent.setdefault((method, where), []).append(str(seed))
    if absent:
        count = sum(m["error"] is None for m in found)
        lines.append(f"incomplete: {count} of the {cells} cells of this table have no result (not finished, or never asked for)")
    return lines + [f"no result: {method} on {', '.join(where)}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
                    for (method, where), seeds in absent.items()]


def require_rows(found: list, folder: Path) -> list:
    """No data is said, never shown as an empty table."""
    if not found:
        raise UserError(f"no data: {str(folder)!r} holds no results; run run_taq_icml.py first or pass --results_dir")
    return found
