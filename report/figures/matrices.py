"""How far the methods of a budget agree, as matrices of squares."""

import numpy as np
import pandas as pd

from report.figures.agreement import KINDS, LEAST, agreement, matrix
from report.figures.frames import Part, plain
from report.figures.style import Figure, panels
from report.figures.svg import SMALL, Drawing, num, text_width

NARROW, WIDTH, LABEL = 290.0, 360.0, 110.0
SQUARE = (12.0, 40.0)  # least and largest side
READABLE = 22.0  # side from which on a square holds its number
STEPS = 10  # shades on each side of zero
BLUE, ORANGE = "#0072B2", "#D55E00"
SHADES = [f'fill="{ORANGE if i < 0 else BLUE}" fill-opacity="{abs(i) / STEPS:.1f}"' for i in range(-STEPS, STEPS + 1)]
PAINTS = [*SHADES, 'fill="var(--line)"']  # the last one: no number


def agreement_figure(part: Part, budget: float | None, number: int) -> Figure:
    """A panel a data set, a matrix a kind of agreement."""
    key = f"agree-{number}"
    title = "Do the methods look at the same weights" + (f" at {budget:g} bits?" if budget is not None else "?")
    how = ("1 (blue): the same order, 0: unrelated, below 0 (orange): the reverse. First which linears score high, "
           "by Spearman's rank correlation of their mean sampled scores. Where methods score single weights, then "
           "which weights inside a linear, and the Jaccard overlap of the kept weights, among the sampled ones; "
           f"grey: no number, fewer than {LEAST} were kept. The numbers hold how much each rests on, and the overlap "
           "by chance. Each method's lowest seed; a method with one score for all linears is left out.")
    pairs = {d: agreement(part.cells, budget, d, part.methods) for d in part.datasets}
    pairs = {d: frame for d, frame in pairs.items() if len(frame)}
    if not pairs:
        lack = "no data: no data set has two methods with scores that differ between linears"
        return Figure(key=key, title=title, how=how, lack=lack)
    numbers = (("One row a data set and pair", pd.concat(pairs.values(), ignore_index=True)),)
    drawings = [_panel(frame, f"{title} {plain(d)}", plain(d)) for d, frame in pairs.items()]
    return Figure(key=key, title=title, how=how, numbers=numbers, svg=panels(drawings))


def _panel(pairs: pd.DataFrame, label: str, dataset: str) -> Drawing:
    """The matrices of one data set, one below another."""
    frames = {kind: matrix(pairs, kind) for kind in KINDS}
    frames = {kind: frame for kind, frame in frames.items() if len(frame)}
    names = {n: plain(n) for frame in frames.values() for n in frame.index}
    room = min(LABEL, max((text_width(n, SMALL) for n in names.values()), default=0.0)) + 8
    sides = {kind: min(SQUARE[1], max(SQUARE[0], (WIDTH - room - 8) / len(frame))) for kind, frame in frames.items()}
    drawing = Drawing(max([NARROW, *(room + sides[kind] * len(frame) + 8 for kind, frame in frames.items())]), label)
    drawing.text(room, 13, dataset, "b", room=drawing.width - room)
    y = 20.0
    for kind, frame in frames.items():
        side = sides[kind]
        drawing.text(room, y + 11, KINDS[kind], "s")
        y += 17
        _matrix(drawing, frame.to_numpy(dtype=float), (room, y), side)
        bottom = y + side * len(frame)
        for i, name in enumerate(frame.index):
            middle = side * (i + 0.5) + 3.5
            drawing.text(room - 5, y + middle, names[name], "s e", room=room - 6)
            drawing.text(room + middle, bottom + 5, names[name], "s e", room=room - 6, upright=True)
        y = bottom + room + 8
    drawing.height = y
    return drawing


def _matrix(drawing: Drawing, values: np.ndarray, corner: tuple[float, float], side: float) -> None:
    """Squares by value, with their numbers where there is room."""
    known = np.isfinite(values)
    shades = np.rint(np.clip(np.where(known, values, 0), -1, 1) * STEPS) + STEPS
    drawing.squares(np.where(known, shades, 2 * STEPS + 1).astype(int), PAINTS, corner, (side, side))
    length = num(side * len(values))
    drawing.path(f"M{num(corner[0])} {num(corner[1])}h{length}v{length}h-{length}z", "frame")
    for (row, column), value in np.ndenumerate(values) if side >= READABLE else ():
        if np.isfinite(value):
            x, y = corner[0] + side * (column + 0.5), corner[1] + side * (row + 0.5) + 3.5
            drawing.text(x, y, _short(value), "s m white" if abs(value) > 0.65 else "s m")


def _short(value: float) -> str:
    """Two digits without the zero before the point."""
    if abs(value) >= 0.995:
        return f"{value:.0f}".replace("-", "−")
    return f"{value:.2f}".replace("0.", ".").replace("-.00", ".00").replace("-", "−")
