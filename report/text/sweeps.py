"""A sweep as sheets: a row a value of the axis, a column a line."""

from collections.abc import Sequence

from report.tables.sweeps import Line
from report.text.numbers import number, span
from report.text.sheets import Sheet, sheet


def sheets(lines: Sequence[Line], axis: str) -> list[Sheet]:
    """One a data set; levels stand in a row of their own."""
    return [_sheet([line for line in lines if line.dataset == dataset], axis)
            for dataset in dict.fromkeys(line.dataset for line in lines)]


def moved_sheet(rows: Sequence[dict]) -> Sheet:
    """What the linears read for a token (harness/w4a4.py)."""
    return sheet("activations that the linears read for one token", [
        {"activations": f"A{row['bits']}", "kept at 16 bits": f"{100 * row['kept']:g} %",
         "bits": f"{row['total']:,}", "bits a number": f"{row['average']:.3f}"} for row in rows])


def _sheet(lines: Sequence[Line], axis: str) -> Sheet:
    along = sorted({point["axis"] for line in lines if not line.level for point in line.points})
    rows = {at: {axis: f"{at:g}"} for at in along}
    for line in lines:
        for point in line.points:
            if line.level:
                rows.setdefault(line.label, {axis: "none"})["level: " + line.label] = _span(point)
            else:
                rows[point["axis"]][line.label + _seeds(line)] = _span(point)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return sheet(f"{lines[0].dataset}: {lines[0].metric} over {axis}",
                 [{name: row.get(name, "-") for name in names} for row in rows.values()])


def _seeds(line: Line) -> str:
    most = max(point["seeds"] for point in line.points)
    return f" ({most} seeds)" if most > 1 else ""


def _span(point: dict) -> str:
    return span(point, lambda value: number(value, 3))
