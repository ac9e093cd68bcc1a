"""One linear under a method: its weights before and after, where the kept ones lie, who holds the score, what a level
costs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from report.figures.style import OKABE_ITO, Figure, legend, panels, swatch
from report.figures.svg import Drawing, Scale, num, scale_of
from report.measured import Linear

WIDTH, LEFT, TOP, HEIGHT = 360.0, 50.0, 30.0, 170.0
MAP = 298.0  # the longer side of a map
TILES = 96  # tiles of a map's longer side at most: a larger window shows shares, a smaller one single weights
BEFORE, AFTER = OKABE_ITO[0], OKABE_ITO[1]
SHADES = 10


def histogram_figure(of: Linear) -> Figure:
    """Weights before and after quantization, one curve of steps each over a logarithmic count."""
    edges, counts = np.array(of.edges), {"as loaded": np.array(of.loaded), "as stored": np.array(of.quantized)}
    panel = Drawing(WIDTH, f"Weights of {of.linear} before and after quantization")
    across = Scale(edges[0], edges[-1], LEFT, WIDTH - 12)
    top = float(np.log10(max(map(max, counts.values())) + 1))
    up = Scale(0.0, top * 1.05, TOP + HEIGHT, TOP)
    panel.text(2, 13, "weights in a bin (logarithmic)", "s")
    panel.left_axis(up, LEFT, [(float(np.log10(10**i + 1)), f"{10**i:,}") for i in range(int(top) + 1)])
    for (name, values), paint in zip(counts.items(), (BEFORE, AFTER), strict=True):
        steps = _steps(edges, np.log10(values + 1), across, up)
        panel.add(f'<path fill="{paint}" fill-opacity=".18" stroke="{paint}" stroke-width="1.4" '
                  f'{"stroke-dasharray=" + chr(34) + "4 2" + chr(34) if name == "as stored" else ""} d="{steps}"/>')
    panel.bottom_axis(across, TOP + HEIGHT, "weight", across.ticks(60))
    panel.height = TOP + HEIGHT + 32
    frame = pd.DataFrame({"from": edges[:-1], "to": edges[1:], **counts})
    filled = {name: int((values > 0).sum()) for name, values in counts.items()}
    items = [(swatch(f'fill="{paint}" fill-opacity=".5"'), name) for name, paint in zip(counts, (BEFORE, AFTER))]
    return Figure(key="histogram", title="What happens to the weights?", numbers=(("Weights by bin", frame),),
                  how="Solid: as loaded; dashed: as the quantized model holds them. Each group of weights has its own "
                      f"scale, so {of.bits}-bit codes make more than {2**of.bits} different values in a whole linear.",
                  note=f"{filled['as loaded']} of {len(edges) - 1} bins hold a weight before, {filled['as stored']} "
                       "after.", svg=panels([panel], legend(items)))


def _steps(edges: np.ndarray, heights: np.ndarray, across: Scale, up: Scale) -> str:
    """A closed outline of bars."""
    steps = f"M{num(across(edges[0]))} {num(up(0))}"
    for left, right, height in zip(edges[:-1], edges[1:], heights):
        steps += f"L{num(across(left))} {num(up(height))}H{num(across(right))}"
    return steps + f"V{num(up(0))}z"


def tiles(of: Linear, window: Sequence[int] | None = None) -> tuple[np.ndarray, int]:
    """How many weights are kept in every tile of a window (first row, row after the last, first column, column after
    the last), and how many rows and columns a tile has: 1 in a small window."""
    rows, columns = of.shape
    top, bottom, left, right = window or (0, rows, 0, columns)
    side = max(1, -(-max(bottom - top, right - left) // TILES))
    kept = np.array(of.kept, dtype=np.int64)
    at = np.stack([kept // columns, kept % columns], 1) if len(kept) else np.zeros((0, 2), dtype=np.int64)
    at = at[(at[:, 0] >= top) & (at[:, 0] < bottom) & (at[:, 1] >= left) & (at[:, 1] < right)]
    counts = np.zeros((-(-(bottom - top) // side), -(-(right - left) // side)), dtype=np.int64)
    np.add.at(counts, ((at[:, 0] - top) // side, (at[:, 1] - left) // side), 1)
    return counts, side


def map_figure(of: Linear, window: Sequence[int] | None = None) -> Figure:
    """Where the kept weights lie: the whole linear, or a window of it."""
    rows, columns = of.shape
    top, bottom, left, right = window or (0, rows, 0, columns)
    counts, side = tiles(of, window)
    size = MAP / max(counts.shape)
    wide, high = size * counts.shape[1], size * counts.shape[0]
    panel = Drawing(max(LEFT + wide + 12, WIDTH), f"Kept weights of {of.linear}")
    most = int(counts.max()) if counts.size else 0
    panel.text(LEFT, 13, f"rows {top}–{bottom - 1}, columns {left}–{right - 1}", "s")
    ranks = np.where(counts > 0, np.ceil(counts / max(1, most) * SHADES), -1).astype(int)
    panel.squares(ranks, [f'fill="currentColor" fill-opacity="{i / SHADES:.2f}"' for i in range(SHADES + 1)],
                  (LEFT, TOP), (size, size))
    panel.path(f"M{num(LEFT)} {TOP}h{num(wide)}v{num(high)}H{num(LEFT)}z", "frame")
    panel.left_axis(Scale(top, max(bottom, top + 1), TOP, TOP + high), LEFT - 2,
                    Scale(top, max(bottom, top + 1), TOP, TOP + high).ticks(40))
    across = Scale(left, max(right, left + 1), LEFT, LEFT + wide)
    panel.bottom_axis(across, TOP + high + 2, "input channel (column)", across.ticks(50))
    panel.height = TOP + high + 36
    inside, weights = int(counts.sum()), (bottom - top) * (right - left)
    what = (f"a tile is {side} × {side} weights, the fullest holds {most} kept ones" if side > 1
            else "a square is one weight")
    frame = pd.DataFrame([{"rows": f"{top}–{bottom - 1}", "columns": f"{left}–{right - 1}", "weights": weights,
                           "kept": inside, "share": inside / weights if weights else 0.0}])
    return Figure(key="map", title="Which weights does the score keep?",
                  how=f"Filled: kept at 16 bits; {what}. A row is an output, a column an input channel.",
                  note=f"{inside:,} of {weights:,} weights of this window are kept ({100 * inside / weights:.2f} %); "
                       f"of the whole model {of.kept_in_model:,} of {of.weights_in_model:,} "
                       f"({100 * of.kept_in_model / of.weights_in_model:.2f} %).",
                  numbers=(("This window", frame),), svg=panels([panel]))


def concentration_figure(of: Linear) -> Figure:
    """Which share of the score the best weights hold."""
    points = np.array(of.ranks, dtype=float)
    panel = Drawing(WIDTH, "Share of the score by share of the weights")
    across = scale_of(np.log10(points[:, 0]), LEFT, WIDTH - 12, 0.03)
    up = Scale(0.0, 1.05, TOP + HEIGHT, TOP)
    panel.text(2, 13, "share of the summed score", "s")
    panel.left_axis(up, LEFT, [(i / 4, f"{25 * i} %") for i in range(5)])
    steps = "L".join(f"{num(across(np.log10(x)))} {num(up(y))}" for x, y in points)
    panel.add(f'<path fill="none" stroke="{BEFORE}" stroke-width="1.4" d="M{steps}"/>')
    for x, y in points:
        panel.marker((across(np.log10(x)), up(y)), "circle", BEFORE, f"{100 * x:g} % of weights: {100 * y:.1f} %")
    ticks = [(float(i), f"{100 * 10.0**i:g} %") for i in range(int(np.ceil(across.low)), 1)]
    panel.bottom_axis(across, TOP + HEIGHT, "share of this linear's weights, the best first (logarithmic)", ticks)
    panel.height = TOP + HEIGHT + 32
    return Figure(key="concentration", title="How few weights hold the score?",
                  how="The weights of this linear from the highest score down, and which share of the summed score "
                      "they hold.", svg=panels([panel]),
                  numbers=(("By share of weights", pd.DataFrame(of.ranks, columns=["weights", "score"])),))


def level_figure(of: Linear) -> Figure:
    """What each level of bits costs in stored bits and in error."""
    panel = Drawing(WIDTH, "Error by stored bits a weight")
    stored, errors = ([level[name] for level in of.levels] for name in ("stored", "error"))
    logs = np.log10(np.maximum(errors, 1e-12))
    across, up = scale_of(stored, LEFT, WIDTH - 12, 0.05), scale_of(logs, TOP + HEIGHT, TOP)
    panel.text(2, 13, "relative squared error (logarithmic)", "s")
    decades = range(int(np.ceil(up.low)), int(np.floor(up.high)) + 1)
    panel.left_axis(up, LEFT, [(float(i), f"{10.0**i:g}") for i in decades])
    steps = "L".join(f"{num(across(x))} {num(up(y))}" for x, y in zip(stored, logs))
    panel.add(f'<path fill="none" stroke="{BEFORE}" stroke-width="1.4" d="M{steps}"/>')
    for level, y in zip(of.levels, logs):
        panel.marker((across(level["stored"]), up(y)), "square", AFTER if level["bits"] == of.bits else BEFORE,
                     f"{level['bits']} bits: {level['stored']:.3f} stored, error {level['error']:.3g}")
    panel.bottom_axis(across, TOP + HEIGHT, f"stored bits a weight, groups of {of.group_size}",
                      [(level["stored"], f"{level['stored']:.2f}") for level in of.levels])
    panel.height = TOP + HEIGHT + 32
    return Figure(key="levels", title="What does a bit cost, and what does it buy?",
                  how="Each point is this linear rounded to nearest at one level, scales and zero points counted in "
                      "its bits. Orange: the level that this row starts from.", svg=panels([panel]),
                  numbers=(("One row a level; qal: Σ |gradient| · |W − Wq|, nats", pd.DataFrame(of.levels)),))
