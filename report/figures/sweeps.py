"""Lines of a metric over a number of the grid, one panel a data set; levels (full precision, ...) are dashed."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from report.figures.frames import plain, whole
from report.figures.style import Figure, Look, alone, legend, looks, panels
from report.figures.svg import SMALL, Drawing, Scale, drawable, num, scale_of, text_width
from report.tables.comparison import falling
from report.tables.sweeps import CHANGE, Line

ACROSS, LEFT, RIGHT, TOP, HEIGHT = 356.0, 52.0, 12.0, 38.0, 220.0
ROOM = 230.0  # for the names of levels, beside the lines
PANELS_A_ROW = 3  # in a file of their own
NAME = 11.0  # height of a level's name
WIDE, FEW = 20.0, 10  # an axis of one sign is logarithmic from this ratio on; ticks at every value up to so many


def sweep_figure(lines: Sequence[Line], axis: str) -> Figure:
    """The figure of a page."""
    numbers = (("One row a line and value", frame(lines, axis)),)
    return Figure(key=f"sweep-{axis}", title=_title(lines, axis), how=_how(lines), numbers=numbers,
                  svg=panels(_panels(lines, axis), legend(_legend(lines))))


def drawing(lines: Sequence[Line], axis: str) -> str:
    """The panels as a file of their own; every line is named beside its last point."""
    named = [whole(f"{label} ({look.marker})") for label, look in _looks(lines).items()]
    if len({line.dataset for line in lines}) > 1:
        named = ["; ".join(named)]
    how = [f"{sentence.removesuffix('.')}." for sentence in _how(lines).split(". ")]
    return alone(_panels(lines, axis), [_title(lines, axis), *how, *named], PANELS_A_ROW)


def frame(lines: Sequence[Line], axis: str) -> pd.DataFrame:
    """Every point of every line; a level has no number on the axis."""
    return pd.DataFrame([{"dataset": plain(line.dataset), "row": plain(line.label), axis: point["axis"],
                          line.metric: point["value"], "low": point["low"], "high": point["high"],
                          "seeds": point["seeds"], "n": point["n"]} for line in lines for point in line.points])


def _title(lines: Sequence[Line], axis: str) -> str:
    return f"What does {axis} do to {lines[0].metric}?"


def _how(lines: Sequence[Line]) -> str:
    better = "Down" if falling(lines[0].metric) else "Up"
    return (f"{better} is better. Dashed: rows without this number. Whiskers: 95 % intervals over the documents; of "
            f"several seeds {'their mean' if lines[0].metric == CHANGE else 'the span of theirs'}.")


def _looks(lines: Sequence[Line]) -> dict[str, Look]:
    return looks(dict.fromkeys(line.label for line in lines if not line.level))


def _legend(lines: Sequence[Line]) -> list:
    return [(look.drawing(), plain(label)) for label, look in _looks(lines).items()]


def _panels(lines: Sequence[Line], axis: str) -> list[Drawing]:
    look = _looks(lines)
    return [_panel([line for line in lines if line.dataset == dataset], axis, look)
            for dataset in dict.fromkeys(line.dataset for line in lines)]


def _panel(lines: Sequence[Line], axis: str, look: dict[str, Look]) -> Drawing:
    names = [plain(line.label) for line in lines if line.level]
    right = LEFT + ACROSS
    room = min(ROOM, max(text_width(name, SMALL) for name in names) + 4) if names else 0.0
    panel = Drawing(right + (room + 6 if names else RIGHT), f"{_title(lines, axis)} {plain(lines[0].dataset)}")
    panel.text(LEFT, 13, plain(lines[0].dataset), "b", room=ACROSS)
    at = sorted({point["axis"] for line in lines if not line.level for point in line.points})
    wide = at[0] > 0 and at[-1] > WIDE * at[0]
    across = scale_of(np.log2(at) if wide else at, LEFT, right, 0.05)
    up = scale_of([point[end] for line in lines for point in line.points for end in ("value", "low", "high")],
                  TOP + HEIGHT, TOP)
    panel.text(2, TOP - 6, lines[0].metric, "s")
    panel.left_axis(up, LEFT, up.ticks(30))
    _levels(panel, [line for line in lines if line.level], up, room)
    for line in lines:
        if not line.level:
            _line(panel, line, look[line.label], lambda x: across(float(np.log2(x)) if wide else x), up)
    ticks = [(float(np.log2(x)) if wide else x, f"{x:g}") for x in at] if len(at) <= FEW or wide else across.ticks()
    panel.bottom_axis(across, TOP + HEIGHT, axis + (" (logarithmic)" if wide else ""), ticks)
    panel.height = TOP + HEIGHT + 32
    return panel


def _levels(panel: Drawing, levels: Sequence[Line], up: Scale, room: float) -> None:
    """A dashed line each, its name at its end, or as far above the one below as names need."""
    free, right = TOP + HEIGHT + NAME, LEFT + ACROSS
    for line in sorted(levels, key=lambda line: -up(line.points[0]["value"])):
        at = up(line.points[0]["value"])
        if drawable(line.points[0]["value"]):
            panel.path(f"M{num(LEFT)} {num(at)}H{num(right)}", "dash")
            free = min(at + 3, free - NAME)
            panel.text(right + 4, free, plain(line.label), "s", room=room)


def _line(panel: Drawing, line: Line, look: Look, across, up: Scale) -> None:
    points = [(across(point["axis"]), point) for point in line.points if drawable(point["value"])]
    steps = "L".join(f"{num(x)} {num(up(point['value']))}" for x, point in points)
    panel.add(f'<path fill="none" stroke="{look.color}" stroke-width="1.4" d="M{steps}"/>')
    for x, point in points:
        if drawable(point["low"]) and drawable(point["high"]):
            panel.path(f"M{num(x)} {num(up(point['low']))}V{num(up(point['high']))}", "whisker")
        panel.marker((x, up(point["value"])), look.marker, look.color,
                     f"{plain(line.label)}: {point['value']:.4g} [{point['low']:.4g}, {point['high']:.4g}] at "
                     f"{point['axis']:g}")
