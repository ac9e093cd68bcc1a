"""A number of the grid against a metric: any axis or setting that rows differ in, one line a row that else is the same.

    axis     act_keep, act_bits, kv_bits, bits (stored, true), avg_bits (asked), any number among the options and
             settings of rows, such as ratio or fp16_ratio, or of the grid, such as calib_tokens
    metric   any that the task has: gold_loglik, accuracy, perplexity, ...; or loglik_change, that of gold_loglik
             against full precision, document by document

A cell without the number is a level: full precision always; where activations are swept, the same row with 16 bits of
them, and over act_keep also one that stands at a single share, as 8 bits often do.  Several seeds are their mean; the
interval is then the span of theirs, of a change that of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.activations import ACT_KEEP, ACTIVATIONS
from core.digest import canonical_json
from core.errors import UserError, did_you_mean
from core.method_names import without_settings
from core.registry import FROM_AXES
from core.settings import SETTINGS
from evaluation.statistics.paired import Panel
from report.records import Result, load_samples
from report.tables.comparison import Documents
from report.tables.groups import dataset_order

METRIC, CHANGE = "gold_loglik", "loglik_change"


@dataclass(frozen=True)
class Line:
    """One row of a data set over the axis; ``points`` hold axis, value, low, high, seeds, n; a level has one."""

    dataset: str
    label: str
    metric: str
    points: tuple[dict, ...]
    level: bool = False


def axes(results: Sequence[Result]) -> list[str]:
    """The names of numbers that rows of one data set differ in."""
    names = {"bits", "avg_bits", *ACTIVATIONS}
    for cell in results:
        for of in (cell.method.settings, cell.method.options, cell.settings):
            names |= {name for name, value in of.items() if _number(value)}
    return sorted(name for name in names if len({value_of(cell, name) for cell in results if cell.ok} - {None}) > 1)


def value_of(cell: Result, axis: str) -> float | None:
    """The number of a cell on an axis; None where it has none."""
    if axis == "bits":
        return None if cell.name == "fp16" else cell.bits.average
    if axis == "avg_bits":
        return cell.avg_bits
    if axis == ACT_KEEP.name and cell.activations.bits == 16:
        return None
    for of in (cell.method.settings, cell.method.options, cell.settings):
        if axis in of:
            return of[axis] if _number(of[axis]) else None
    return SETTINGS[axis].default if axis in ACTIVATIONS else None


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def sweep(results: Sequence[Result], axis: str, metric: str = METRIC) -> list[Line]:
    """The lines of every data set; UserError for an axis that no rows differ in, or a metric that none has."""
    good = [cell for cell in results if cell.ok]
    known = axes(good)
    if axis not in known:
        raise UserError(f"--sweep {axis!r} is no number in which these rows differ{did_you_mean(axis, known)}; they "
                        f"differ in: {', '.join(known) or 'none'}")
    measured = {name for cell in good for name, value in cell.metrics.items() if value is not None}
    full = _full(good) if metric == CHANGE else {}
    if metric not in measured and not full:
        raise UserError(f"--metric {metric!r} is none that these results have{did_you_mean(metric, measured)}; they "
                        f"have: {', '.join(sorted(measured))}, and {CHANGE} where full precision is among them")
    lines, bases, single = [], set(), set()
    cells = [cell for cell in good if (cell.asked in full if full else cell.metrics.get(metric) is not None)]
    panels = Panels(full)
    for same in _alike([cell for cell in cells if value_of(cell, axis) is not None], axis):
        if len({value_of(cell, axis) for cell in same}) > 1:
            lines.append(_line(same, axis, metric, panels))
            bases.add(_identity(same[0], axis, *ACTIVATIONS))
        elif axis == ACT_KEEP.name:
            single |= set(map(id, same))
    if not lines:
        raise UserError(f"--sweep {axis!r}: no row stands at two values of it with all else equal; run a grid with "
                        "several")
    levels = [cell for cell in cells if (value_of(cell, axis) is None or id(cell) in single)
              and (cell.name == "fp16" or _identity(cell, axis, *ACTIVATIONS) in bases)]
    datasets = {line.dataset for line in lines}
    lines.sort(key=lambda line: (dataset_order(line.dataset), line.label))
    return lines + [_line(same, axis, metric, panels, level=True) for same in _alike(levels, axis)
                    if same[0].dataset in datasets]


def _full(results: Sequence[Result]) -> dict[str, Result]:
    """The newest full precision of each set of documents, by their digest."""
    return {cell.asked: cell for cell in sorted(results, key=lambda cell: cell.age) if cell.name == "fp16"}


class Panels:
    """Compares cells with full precision on the same documents; its samples are read once."""

    def __init__(self, full: dict[str, Result]):
        self.full, self.documents = full, Documents()

    def change(self, cells: Sequence[Result]) -> dict:
        """The mean of the paired changes of some seeds, with its bootstrap interval."""
        runs = [self.documents.of(self.full[cells[0].asked]), *map(load_samples, cells)]
        return Panel(runs).difference(METRIC, 0, list(range(1, len(runs))))


def _alike(cells: Sequence[Result], axis: str) -> list[list[Result]]:
    """Cells of one data set that differ in the axis and the seed alone."""
    groups: dict[tuple, list[Result]] = {}
    for cell in cells:
        groups.setdefault((cell.dataset, _identity(cell, axis)), []).append(cell)
    return list(groups.values())


def _identity(cell: Result, *without: str) -> str:
    """All that a line's cells share: the row without these numbers; seeds of a row share it."""
    method, bits = cell.method, bool({"bits", "avg_bits"} & set(without))

    def rest(values: dict) -> dict:
        return {name: value for name, value in values.items() if name not in without and not (bits and name == "bits")}

    return canonical_json([cell.model.revision, cell.model.dtype, cell.machine, cell.asked, _name(cell, *without),
                           method.scorer, method.allocator, method.quantizer, rest(method.options),
                           rest(method.settings), rest(cell.settings), None if bits else cell.avg_bits])


def _name(cell: Result, *without: str) -> str:
    """The row's name without these numbers."""
    named = without_settings(cell.name, without)
    return named.partition("@")[0] if set(FROM_AXES) & set(without) else named


def _line(cells: list[Result], axis: str, metric: str, panels: Panels, level: bool = False) -> Line:
    points: dict[float | None, list[Result]] = {}
    for cell in cells:
        points.setdefault(value_of(cell, axis), []).append(cell)
    along = tuple(_point(at, points[at], metric, panels) for at in sorted(points, key=lambda at: at or 0.0))
    return Line(cells[0].dataset, _label(cells[0], axis), metric, along, level)


def _point(at: float | None, cells: list[Result], metric: str, panels: Panels) -> dict:
    facts = {"seeds": len({cell.seed for cell in cells}), "n": cells[0].n}
    if metric == CHANGE:
        return {"axis": at} | panels.change(cells) | facts
    values = [cell.metrics[metric] for cell in cells]
    return {"axis": at, "value": sum(v.value for v in values) / len(values), "low": min(v.low for v in values),
            "high": max(v.high for v in values)} | facts


def _label(cell: Result, axis: str) -> str:
    """The row's name without the axis, and its budget."""
    name = _name(cell, axis)
    return name if cell.avg_bits is None or axis in ("bits", "avg_bits") else f"{name}, {cell.avg_bits:g} bits"
