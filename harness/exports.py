"""Which rows of a grid are exported, and into which folders (harness/stages/export.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from core.errors import UserError
from core.registry import CONTROLS
from harness.grid import Grid, with_methods
from harness.progress import Progress
from harness.stages.case import Case, open_cases
from harness.stages.export import check_export_of, export, measured
from harness.stages.result import plain_name

BEST = "best"


def export_grid(grid: Grid, token: str | None, asked: tuple[str, ...], *, where: list[str], kind: str, command: str,
                progress: Progress) -> Iterator[tuple[Path, dict]]:
    """Export the rows that ``asked`` names (the preset's, if none are), one folder each; of one row, the folder itself.

    where: [DIR] or ["best", DIR].  Yields each folder and what its export.json says.
    """
    best = where[0] == BEST
    if len(where) != 1 + best:
        raise UserError(f"--export is {' '.join(where)!r}; give DIR, or best DIR")
    folder = Path(where[-1])
    names = grid.methods if best else asked or tuple(name for name in grid.methods if name not in CONTROLS)
    cases = list(open_cases(with_methods(grid, names), token, progress))
    if best:
        cases = best_of(cases)
    folders = [folder] if len(cases) == 1 else [folder / folder_name(case) for case in cases]
    for case, one in zip(cases, folders, strict=True):
        check_export_of(case, one, kind)
    for case, one in zip(cases, folders, strict=True):
        yield one, export(case, one, kind, command)


def folder_name(case: Case) -> str:
    """A readable name for one row's folder."""
    cell = case.cell
    bits = f"-{cell.avg_bits:g}b" if cell.avg_bits is not None else ""
    return plain_name(f"{case.model.ref.name}-{cell.dataset}-{cell.method.name}{bits}-s{cell.seed}")


def best_of(cases: list[Case]) -> list[Case]:
    """Of each model, data set and budget, the row at the budget whose gold answers are likeliest, seeds averaged.

    Raises UserError where a place has no result.
    """
    places: dict[tuple, dict[str, list[tuple[Case, float]]]] = {}
    for case in cases:
        if not case.method.budgeted or case.cell.avg_bits is None:
            continue
        rows = places.setdefault((case.cell.model, case.cell.dataset, case.cell.avg_bits), {})
        if (result := measured(case)) is not None:
            value = result.metrics["gold_loglik"].value
            rows.setdefault(case.method.name, []).append((case, value))
    chosen = []
    for (_, dataset, bits), rows in places.items():
        if not rows:
            raise UserError(f"--export best finds no result on {dataset} at {bits:g} bits; run the same command "
                            "without --export first")
        means = {name: sum(value for _, value in cells) / len(cells) for name, cells in rows.items()}
        chosen.append(rows[max(means, key=means.get)][0][0])
    if not chosen:
        raise UserError("--export best chooses among rows at a budget, and none is asked for; name some with --method")
    return chosen
