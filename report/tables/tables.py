"""Tables out of results: rows of numbers that every form of a table is made of.

A table holds the cells that may be compared: same model, same settings, same budget.  fp16, native and
other rows without a budget stand in every table of their model and settings, with their own bits.
What is computed of each data set's rows is in report/tables/comparison.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from core.calibration import names_in
from core.errors import UserError
from core.registry import CONTROLS
from report.records import Result, load_results
from report.tables.comparison import Documents, compare_dataset
from report.tables.conditioning import calibrated_on
from report.tables.faithfulness import without_curves
from report.tables.groups import apart, comparable, dataset_order, headings, missing, newest_documents, newest_twins
from report.tables.heads import stable_heads
from report.tables.shuffles import against_shuffles, is_shuffle, shuffle_lines

if TYPE_CHECKING:
    import pandas as pd

ROW_ORDER = {name: i for i, name in enumerate(CONTROLS)}


@dataclass(frozen=True)
class TableData:
    """One table: its title, a row a cell, and what must be said below it."""

    title: str
    rows: tuple[dict, ...]  # one a (method, seed, dataset), numbers unrounded; named in report/tables/comparison.py
    cells: tuple[Result, ...]  # what the rows were computed from
    said: tuple[str, ...]  # about data sets, bits and versions
    about: dict  # model, machine, run type, settings, budget, group sizes; "apart": what other tables have otherwise
    facts: dict[str, dict]  # by data set: documents, metrics, chance, Holm's families, power, accuracy by category
    missing: tuple[dict, ...]  # cells that have no result or failed

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows as a pandas frame."""
        import pandas as pd  # its import takes as long as all else that prints a table

        return pd.DataFrame(self.rows)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that have rows, in the table's order."""
        return tuple(dict.fromkeys(row["dataset"] for row in self.rows))

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said below the table: the cells that it lacks, then the rest."""
        return (*_missing_lines(self.missing, len(self.rows) + len(self.missing)), *self.said)

    def of(self, dataset: str) -> list[dict]:
        """The rows of a data set."""
        return [row for row in self.rows if row["dataset"] == dataset]


def tables(folder: Path) -> list[TableData]:
    """Every table that the results folder holds, newest settings first."""
    return group(load_results(folder))


def tables_of(folder: Path, results: list[Result]) -> list[TableData]:
    """The tables of the cells just run, read back from disk; not those of the same cells under other settings."""
    asked = {result.conditions for result in results}
    return group([r for r in load_results(folder, {r.cell for r in results}) if r.conditions in asked])


def group(results: Sequence[Result], beside: Sequence[Result] = ()) -> list[TableData]:
    """Sort cells into the tables in which they may be compared.

    Titles say what sets a table apart from others of ``beside``, the results among which these were chosen.
    """
    results, beside = without_curves(results), without_curves(beside)
    known = comparable(beside or results)
    heads = {cells[0].conditions: (heading, facts)
             for cells, heading, facts in zip(known, headings(known), apart(known), strict=True)}
    documents, every = Documents(), []
    for members in comparable(results):
        heading, facts = heads[members[0].conditions]
        for bits in sorted({r.avg_bits for r in members if r.avg_bits is not None}) or [None]:
            cells = [r for r in members if r.avg_bits in (bits, None)]
            every.append(one_table(cells, bits, heading, facts=facts, documents=documents))
    return every


def one_table(members: Sequence[Result], bits: float | None, heading: str, *, facts: dict,
              documents: Documents) -> TableData:
    """Compare the cells of one (model, settings, budget)."""
    cells, said = _counted([r for r in members if r.ok])
    shuffles, cells = [cell for cell in cells if is_shuffle(cell)], [cell for cell in cells if not is_shuffle(cell)]
    rows, by_dataset = [], {}
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        mine = [cell for cell in cells if cell.dataset == dataset]
        own, by_dataset[dataset], notes = compare_dataset(mine, documents)
        beaten = against_shuffles(mine, [cell for cell in shuffles if cell.dataset == dataset])
        by_dataset[dataset]["shuffles"] = beaten
        rows += own
        said += notes + _notes(dataset, mine) + shuffle_lines(dataset, beaten)
    sizes = sorted({cell.bits.group_size for cell in cells if cell.bits.group_size is not None})
    groups = f", groups of {' and '.join(map(str, sizes))}" if sizes else ""
    budget = f", at most {bits:g} stored bits a weight" if bits is not None else ""
    head = members[0]
    about = {"model": asdict(head.model), "machine": head.machine, "run_type": head.run_type, "settings": head.settings,
             "avg_bits": bits, "group_sizes": sizes, "apart": facts}
    return TableData(title=heading + groups + budget, rows=tuple(rows), cells=tuple(cells), about=about,
                     facts=by_dataset, said=(*said, *_versions(cells)), missing=tuple(missing(members)))


def _counted(cells: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """The cells that have rows, in their order, and what is said of those left out."""
    counted, said = [], []
    for dataset in sorted({cell.dataset for cell in cells}, key=dataset_order):
        mine = [cell for cell in cells if cell.dataset == dataset]
        alike = newest_documents(mine)
        if len(alike) < len(mine):
            said.append(f"{dataset}: {len(mine) - len(alike)} cells left out, they were asked other documents or in "
                        "other batches; run them again")
        newest = newest_twins(alike)
        files = {cell.file for cell in newest}
        said += [f"{dataset}: an older cell of {name} left out; it differs in what the settings do not say, such as "
                 "the version that made it" for name in sorted({cell.name for cell in alike if cell.file not in files})]
        counted += sorted(newest, key=_place)
    return counted, said


def _place(cell: Result) -> tuple:
    """Controls first, then methods at the budget, then rows with bits of their own."""
    return ROW_ORDER.get(cell.name, 20 if cell.method.native else 10), cell.name, cell.seed


def _notes(dataset: str, cells: Sequence[Result]) -> list[str]:
    """What must be said of a data set's rows besides their bits."""
    notes = [f"{dataset}: {cell.data_note}" for cell in cells[:1] if cell.data_note]
    absent = [name for name in ("fp16", "uniform") if name not in {cell.name for cell in cells}]
    notes += [f"{dataset}: {name} has no result, so nothing is compared with it" for name in absent]
    sizes = {cell.name: cell.bits.group_size for cell in cells if cell.bits.group_size is not None}
    if len(set(sizes.values())) > 1:
        words = ", ".join(f"{name} {size}" for name, size in sizes.items())
        notes.append(f"{dataset}: rows differ in the size of their groups: {words}")
    elsewhere: dict[str, list[str]] = {}
    for cell in cells:
        text = calibrated_on(cell)
        if text not in (None, dataset) and cell.name not in elsewhere.setdefault(text, []):
            elsewhere[text].append(cell.name)
    notes += [f"{dataset}: conditioned {'with others' if dataset in names_in(text) else 'elsewhere'}, on {text}: "
              f"{', '.join(names)}" for text, names in elsewhere.items()]
    notes += [f"{dataset}: {cell.name}, seed {cell.seed}, calibrated on {cell.solver_calibration['chosen']}"
              for cell in cells if (cell.solver_calibration or {}).get("chosen")]
    notes += [f"{dataset}: {cell.name}, seed {cell.seed}: {cell.score_notes['say']}"
              for cell in cells if cell.score_notes.get("say")]
    notes += [f"{dataset}: {line}" for line in stable_heads(cells)]
    if len({cell.seed for cell in cells if (cell.solver_calibration or {}).get("whole_pool")}) > 1:
        notes.append(f"{dataset}: --calib_tokens took every calibration document, so all seeds read the same ones; "
                     "their sd says little")
    return notes


def _versions(cells: Sequence[Result]) -> list[str]:
    """Which versions differ between the rows, and how many rows are of each."""
    words = []
    for name in sorted({name for cell in cells for name in cell.versions}):
        counts = Counter(str(cell.versions.get(name, "unknown")) for cell in cells)
        if len(counts) > 1:
            words.append(f"{name} " + " and ".join(f"{version} ({count})" for version, count in counts.most_common()))
    return [f"rows come from different versions (how many): {'; '.join(words)}"] if words else []


def _missing_lines(absent: Sequence[dict], cells: int) -> list[str]:
    """What is missing in words: one line a method that has no result somewhere, one a failed cell."""
    lines = [f"FAILED: {m['method']} on {m['dataset']}, seed {m['seed']}: {m['error']}"
             for m in absent if m["error"] is not None]
    never = [m for m in absent if m["error"] is None]
    if never:
        lines.append(f"incomplete: {len(never)} of the {cells} cells of this table have no result (not finished, or "
                     "never asked for)")
    places: dict[tuple[str, tuple], list[str]] = {}
    for method, seed in dict.fromkeys((m["method"], m["seed"]) for m in never):
        where = tuple(m["dataset"] for m in never if (m["method"], m["seed"]) == (method, seed))
        places.setdefault((method, where), []).append(str(seed))
    return lines + [f"no result: {method} on {', '.join(where)}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
                    for (method, where), seeds in places.items()]


def require_rows(results: list, folder: Path) -> list:
    """No data is said, never shown as an empty table."""
    if not results:
        raise UserError(f"no data: {str(folder)!r} holds no results; run run_taq_icml.py first or pass --results_dir")
    return results
