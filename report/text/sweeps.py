"""A sweep as sheets: a row a value of the axis, a column a line; levels by themselves."""

from collections.abc import Sequence

from report.tables.sweeps import Line
from report.text.numbers import number, span
from report.text.sheets import Sheet, sheet


def sheets(lines: Sequence[Line], axis: str) -> list[Sheet]:
    """Two a data set: the lines, then the levels if there are any."""
    drawn = []
    for dataset in dict.fromkeys(line.dataset for line in lines):
        own = [line for line in lines if line.dataset == dataset]
        drawn.append(_sheet([line for line in own if not line.level], axis))
        drawn += _levels([line for line in own if line.level])
    return drawn


def _levels(levels: Sequence[Line]) -> list[Sheet]:
    """A row a level."""
    if not levels:
        return []
    first = levels[0]
    rows = [{"row": line.label + _seeds(line), first.metric: _span(line.points[0])} for line in levels]
    return [sheet(f"{first.dataset}: {first.metric} of rows without this number", rows)]


def moved_sheet(rows: Sequence[dict]) -> Sheet:
    """What the linears read for a token (harness/w4a4.py)."""
    return sheet("activations that the linears read for one token", [
        {"activations": f"A{row['bits']}", "kept at 16 bits": f"{100 * row['kept']:g} %",
         "bits": f"{row['total']:,}", "bits a number": f"{row['average']:.3f}"} for row in rows])


def _sheet(lines: Sequence[Line], axis: str) -> Sheet:
    along = sorted({point["axis"] for line in lines for point in line.points})
    rows = {at: {axis: f"{at:g}"} for at in along}
    for line in lines:
        for point in line.points:
            rows[point["axis"]][line.label + _seeds(line)] = _span(point)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return sheet(f"{lines[0].dataset}: {lines[0].metric} over {axis}",
                 [{name: row.get(name, "-") for name in names} for row in rows.values()])


def _seeds(line: Line) -> str:
    most = max(point["seeds"] for point in line.points)
    return f" ({most} seeds)" if most > 1 else ""


def _span(point: dict) -> str:
    return span(point, lambda value: number(value, 3))
