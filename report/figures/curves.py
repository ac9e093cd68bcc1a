"""What a stored bit buys: value against true stored bits, with the front that nothing beats at equal or fewer bits."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from report.figures.forest import WHISKERS, full_precision, metric_name, point, unit
from report.figures.frames import Part, curve, plain, shown
from report.figures.style import Figure, Look, legend, looks, panels
from report.figures.svg import Drawing, Scale, drawable, num, scale_of

WIDTH, LEFT, RIGHT = 360.0, 46.0, 12.0
PLOTS = {"main": (38.0, 170.0), "d_loglik": (236.0, 150.0)}  # top and height
WIDE, POWERS = 2.5, (2, 3, 4, 5, 6, 8, 12, 16)  # from which ratio of bits on the axis is logarithmic, and its ticks
SPREAD, CROWD = 0.02, 5  # how far apart rows of equal bits are drawn, of the axis; rows of a run that needs room


def curve_figure(part: Part) -> Figure:
    """One panel a data set: accuracy above, change of log-likelihood below, over one axis of bits."""
    title = "What does a stored bit buy?"
    how = ("Right is more storage, up is better. Dashed: full precision (fp16). The stepped line is the Pareto "
           "front: no row with equal or fewer bits lies above it; 'reaches it' in the numbers marks a row whose "
           f"interval does. Bits within {part.tolerance:g} of each other count as equal: such rows are drawn side by "
           "side around them, and the numbers hold the true bits. Black squares: uniform bits, grey diamonds: random "
           f"scores. {WHISKERS}")
    frame = curve(part)
    if not len(frame) or not (frame["method"] != "fp16").any():
        return Figure(key="bits", title=title, how=how, lack="no data: no finished row of a quantized model")
    look = looks(part.methods)
    drawings = [_panel(frame[frame["dataset"] == d], f"{title} {plain(d)}", look, part.tolerance) for d in part.datasets
                if (frame["dataset"] == d).any()]
    methods = [m for m in part.methods if m != "fp16" and (frame["method"] == m).any()]
    numbers = (("One row a data set, method and budget", shown(frame, "main_front", "d_loglik_front")),)
    return Figure(key="bits", title=title, how=how, numbers=numbers, svg=panels(drawings, _legend(methods, look)))


def _legend(methods: list[str], look: dict[str, Look]) -> str:
    """Markers of the methods, and the two lines."""
    items = [(look[method].drawing(), plain(method)) for method in methods]
    for words, steps, kind in (("fp16", "M1 7h22", "dash"), ("Pareto front", "M1 11h11v-7h11", "front")):
        drawing = Drawing(24, "")
        drawing.path(steps, kind)
        items.append((drawing, words))
    return legend(items)


def _panel(frame: pd.DataFrame, label: str, look: dict[str, Look], tolerance: float) -> Drawing:
    """One data set."""
    drawing = Drawing(WIDTH, label)
    rows = frame[frame["method"] != "fp16"].sort_values("bits", kind="stable")
    drawing.text(LEFT, 13, plain(frame["dataset"].iloc[0]), "b", room=WIDTH - LEFT)
    bits = rows["bits"].to_numpy(dtype=float)
    wide = len(bits) and bits.max() > WIDE * bits.min() > 0
    at, start = beside(bits, tolerance, np.log2 if wide else np.asarray) if len(rows) else (bits, bits)
    across = scale_of(at, LEFT, WIDTH - RIGHT, 0.05)
    for name, (top, height) in PLOTS.items():
        level, words = full_precision(frame, name), "Δ gold log-likelihood against fp16 (nats a token)"
        values = unit(frame["metric"].iloc[0], name) * rows[[name, f"{name}_low", f"{name}_high"]].to_numpy()
        up = scale_of([level, *values.ravel()], top + height, top)
        drawing.text(2, top - 6, metric_name(frame) if name == "main" else words, "s")
        drawing.left_axis(up, LEFT, up.ticks(30))
        if drawable(level):
            drawing.path(f"M{num(LEFT)} {num(up(level))}H{num(WIDTH - RIGHT)}", "dash")
        front = (rows[f"{name}_front"] == "front").to_numpy()
        drawing.path(_steps(across, up, start[front], values[front, 0]), "front")
        for x, row in zip(at, rows.to_dict("records")):
            point(drawing, row, name, up, other=across(x), look=look[row["method"]], upright=True)
    bottom = top + height
    drawing.bottom_axis(across, bottom, "stored bits a weight, metadata included" + (" (logarithmic)" if wide else ""),
                        _ticks(across, bits, start, wide))
    drawing.height = bottom + 32
    return drawing


def _ticks(across: Scale, bits: np.ndarray, start: np.ndarray, wide: bool) -> list[tuple[float, str]]:
    """Round bits, or the bits themselves where all rows have the same."""
    if len(bits) and start[0] == start[-1]:
        return [((across.low + across.high) / 2, f"{bits.mean():.3f}")]
    if wide:
        return [(x, f"{b}") for b in POWERS if across.low <= (x := float(np.log2(b))) <= across.high]
    return across.ticks()


def _steps(across: Scale, up: Scale, bits: Sequence[float], values: Sequence[float]) -> str:
    """The front as a path, to the right end of the axis."""
    points = [(across(b), up(v)) for b, v in zip(bits, values) if drawable(v)]
    if not points:
        return ""
    steps = "".join(f"H{num(x)}V{num(y)}" for x, y in points[1:])
    return f"M{num(points[0][0])} {num(points[0][1])}{steps}H{num(across.end)}"


def beside(bits: np.ndarray, tolerance: float, along: Callable = np.asarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rows are drawn, given their bits in rising order, and the left end of each one's run.

    Rows of equal bits, a run, stand side by side; ``along`` turns bits into places.  Runs of CROWD rows or more do not
    overlap: each takes less than half of the distance to the next.
    """
    run = np.cumsum(np.diff(bits, prepend=bits[0]) > tolerance + 1e-9)
    counts, at = np.bincount(run), along(bits)
    middles = np.array([at[run == r].mean() for r in range(len(counts))])
    apart = np.diff(middles[counts >= CROWD])
    step = min([SPREAD * max(float(np.ptp(at)), 0.1), *(0.8 * apart / (counts.max() - 1)).tolist()])
    at = at + step * np.concatenate([np.arange(n) - (n - 1) / 2 for n in counts])
    return at, np.array([at[run == r].min() for r in run])
