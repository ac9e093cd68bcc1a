"""Faithfulness curves: what is left of the task against the share of heads and neurons that stays at 16 bits."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from report.figures.frames import plain, whole
from report.figures.style import Figure, Look, alone, legend, looks, panels
from report.figures.svg import Drawing, drawable, num, scale_of
from report.tables.faithfulness import Faithfulness

WIDTH, LEFT, RIGHT, TOP, HEIGHT = 360.0, 46.0, 12.0, 38.0, 190.0
TITLE = "How much of the task is left when all but a circuit is quantized?"
HOW = ("Up is better: 1 (dashed) is full precision, 0 everything at the low bits. Right is more at 16 bits "
       "(logarithmic). uniform is no circuit: uniform bits at what 'best first' stores. Whiskers: 95 % intervals, "
       "paired over documents; what lies below −1 or above 1.5 is cut, the numbers hold it.")
ORDER = ("best first", "random", "worst first", "uniform")
BESIDE = 0.06  # of a doubling, between the markers of one share
PANELS_A_ROW = 3  # in a file of their own
FLOOR, CEILING = -1.0, 1.5  # whiskers beyond are cut: a ratio whose denominator nears 0 has no bound


def faithfulness_figure(families: Sequence[Faithfulness]) -> Figure:
    """One panel a data set, scorer and number of low bits."""
    numbers = (("One row a curve and share", frame(families)),)
    return Figure(key="faithfulness", title=TITLE, how=HOW, numbers=numbers,
                  svg=panels([_panel(one) for one in families], legend((look.drawing(), label)
                                                                       for label, look in _looks().items())))


def drawing(families: Sequence[Faithfulness]) -> str:
    """The panels as a file of their own."""
    words = ["Up is better: 1 (dashed) is full precision, 0 everything at the low bits.",
             "Markers: " + ", ".join(f"{label} ({_looks()[label].marker})" for label in ORDER)]
    return alone([_panel(one) for one in sorted(families, key=lambda one: -one.bits)], [TITLE, *words], PANELS_A_ROW)


def frame(families: Sequence[Faithfulness]) -> pd.DataFrame:
    """Every point of every curve."""
    return pd.DataFrame([
        {"dataset": plain(one.dataset), "scorer": plain(one.scorer + one.told), "low bits": one.bits,
         "order": curve.label, "kept": share,
         "bits": bits, "faithfulness": point["value"], "low": point["low"], "high": point["high"],
         "area": curve.area["value"], "seeds": curve.seeds, "n": one.n}
        for one in families for curve in one.curves
        for share, bits, point in zip(curve.shares, curve.bits, curve.points)])


def _looks() -> dict[str, Look]:
    return {label: look for label, look in zip(ORDER, looks(["circuit", "random", "worst", "uniform"]).values())}


def _panel(one: Faithfulness) -> Drawing:
    panel = Drawing(WIDTH, f"{TITLE} {whole(one.title)}")
    panel.text(LEFT, 13, whole(one.title), "b", room=WIDTH - LEFT)
    shares = sorted({share for curve in one.curves for share in curve.shares})
    across = scale_of(np.log2(shares), LEFT, WIDTH - RIGHT, 0.05)
    ends = [min(max(point[end], FLOOR), CEILING) for curve in one.curves for point in curve.points
            for end in ("value", "low", "high") if drawable(point[end])]
    up = scale_of([0.0, 1.0, *ends], TOP + HEIGHT, TOP)
    panel.text(2, TOP - 6, "faithfulness", "s")
    panel.left_axis(up, LEFT, up.ticks(30))
    for level, kind in ((1.0, "dash"), (0.0, "grid")):
        panel.path(f"M{num(LEFT)} {num(up(level))}H{num(WIDTH - RIGHT)}", kind)
    for number, curve in enumerate(one.curves):
        _curve(panel, curve, number, across, up)
    panel.bottom_axis(across, TOP + HEIGHT, "share of heads and neurons at 16 bits (logarithmic)",
                      [(float(np.log2(share)), f"{100 * share:g} %") for share in shares])
    panel.height = TOP + HEIGHT + 32
    return panel


def _curve(panel: Drawing, curve, number: int, across, up) -> None:
    look = _looks()[curve.label]
    points = [(across(float(np.log2(share)) + BESIDE * (number - 1.5)), point) for share, point
              in zip(curve.shares, curve.points) if drawable(point["value"]) and FLOOR <= point["value"] <= CEILING]
    if points:
        steps = "L".join(f"{num(x)} {num(up(point['value']))}" for x, point in points)
        panel.add(f'<path fill="none" stroke="{look.color}" stroke-width="1.4" d="M{steps}"/>')
    for x, point in points:
        low, high = max(point["low"], FLOOR), min(point["high"], CEILING)
        panel.path(f"M{num(x)} {num(up(low))}V{num(up(high))}", "whisker")
        panel.marker((x, up(point["value"])), look.marker, look.color,
                     f"{curve.label}: {point['value']:.3f} [{point['low']:.3f}, {point['high']:.3f}]")
