"""A small pen for SVG: scales with round ticks, axes, text, lines, markers, bars and maps of squares.

Lengths are CSS pixels, y grows downwards.  A drawing names the classes and variables of style.STYLE and no colour of
ink or paper, so one drawing serves a light page, a dark page and print.  The same calls give the same bytes.  Every
word that is drawn is quoted here.
"""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

SMALL, NORMAL = 10.0, 11.0  # font sizes
NARROW, BROAD = "iljtfrI.,:;|!'()[]- ", "mwMW@%—…+=<>~#&"
BOLD = 1.12  # how much wider bold words are
BACK = ("grid", "whisker")  # kinds of paths over which markers and words stand
LARGEST = 1e100  # a number beyond it is no measurement and would overflow a scale


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, room: float = 42.0) -> list[tuple[float, str]]:
        """Round values inside the scale and their texts, about ``room`` pixels or more apart.

        The step is the smallest of 1, 2 or 5 times a power of ten that gives no more of them.
        """
        count = max(2, int(abs(self.end - self.start) / room) + 1)
        unit = 10.0 ** math.floor(math.log10((self.high - self.low) / count))
        step = next(unit * by for by in (1, 2, 5, 10, 20, 50) if _multiples(self.low, self.high, unit * by) <= count)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        values = [(first + i) * step for i in range(_multiples(self.low, self.high, step))]
        return [(value, f"{value:.{digits}f}".replace("-", "−")) for value in values]


def _multiples(low: float, high: float, step: float) -> int:
    """How many multiples of a step lie between two values."""
    return math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1


def drawable(value: float | None) -> bool:
    """Whether there is a number that a scale can hold."""
    return value is not None and abs(value) < LARGEST  # NaN is not below anything


def scale_of(values: Iterable[float | None], start: float, end: float, margin: float = 0.06) -> Scale:
    """A scale that holds all drawable values with a margin at both ends; a single value stands in the middle."""
    known = [float(v) for v in values if drawable(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = margin * (high - low) or margin * max(abs(high), 1.0)
    return Scale(low - room, high + room, start, end)


def text_width(words: str, size: float = NORMAL) -> float:
    """About how wide words are in a broad sans-serif font."""
    broad = {c for c in words if c in BROAD or unicodedata.east_asian_width(c) in "WF"}
    return size * sum(0.36 if c in NARROW else 0.95 if c in broad else 0.7 if c.isupper() else 0.61 for c in words)


def fitted(words: str, room: float, size: float = NORMAL) -> str:
    """Words that fit the room; longer ones lose their middle, because names often differ at their ends."""
    letters, short = len(words), words
    while text_width(short, size) > room and letters > 3:
        letters -= 1
        short = words[: letters - letters // 2] + "…" + words[len(words) - letters // 2:]
    return short


def num(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


class Drawing:
    """One panel, drawn from the top down; who draws sets ``height``."""

    def __init__(self, width: float, label: str):
        self.width, self.height, self.label = width, 0.0, label
        self._back: list[str] = []
        self._items: list[str] = []

    def add(self, item: str) -> None:
        """SVG text as it is."""
        self._items.append(item)

    def text(self, x: float, y: float, words: str, kind: str = "", *, room: float = math.inf,
             upright: bool = False) -> None:
        """Words with their baseline at y, turned by a quarter if ``upright``.

        Longer ones are shortened to ``room``; the whole name then shows when pointed at.
        """
        kinds = kind.split()
        shown = fitted(words, room, (SMALL if "s" in kinds else NORMAL) * (BOLD if "b" in kinds else 1.0))
        turn = f' transform="rotate(-90 {num(x)} {num(y)})"' if upright else ""
        note = _note(words if shown != words else "")
        self.add(f'<text{_kind(kind)} x="{num(x)}" y="{num(y)}"{turn}>{escape(shown)}{note}</text>')

    def path(self, steps: str, kind: str, fill: str = "", note: str = "") -> None:
        """A path; nothing where there are no steps.  A note shows when pointed at; kinds of BACK lie under all else."""
        if steps:
            paint = f' fill="{fill}"' if fill else ""
            items = self._back if kind in BACK else self._items
            items.append(f'<path{_kind(kind)}{paint} d="{steps}"' + (f">{_note(note)}</path>" if note else "/>"))

    def marker(self, place: tuple[float, float], shape: str, fill: str, note: str = "") -> None:
        """A marker of ``MARKERS``."""
        self.path(f"M{num(place[0])} {num(place[1])}{MARKERS[shape]}", "mark", fill, note)

    def bottom_axis(self, scale: Scale, y: float, name: str, ticks: Sequence[tuple[float, str]]) -> None:
        """A line with ticks and their texts, the axis's name below."""
        at = [scale(value) for value, _ in ticks]
        marks = "".join(f"M{num(x)} {num(y)}v3" for x in at)
        self.path(f"M{num(scale.start)} {num(y)}H{num(scale.end)}{marks}", "axis")
        for x, (_, words) in zip(at, ticks):
            self.text(x, y + 14, words, "s m")
        self.text((scale.start + scale.end) / 2, y + 27, name, "s m")

    def left_axis(self, scale: Scale, x: float, ticks: Sequence[tuple[float, str]]) -> None:
        """A line with ticks and their texts."""
        at = [scale(value) for value, _ in ticks]
        marks = "".join(f"M{num(x)} {num(y)}h-3" for y in at)
        self.path(f"M{num(x)} {num(scale.start)}V{num(scale.end)}{marks}", "axis")
        for y, (_, words) in zip(at, ticks):
            self.text(x - 5, y + 3.5, words, "s e")

    def squares(self, levels: np.ndarray, paints: Sequence[str], corner: tuple[float, float],
                size: tuple[float, float]) -> None:
        """A map of squares, [rows, columns] of level numbers, below 0 for none.

        One path a level, ``paints`` has each level's attributes; equal neighbours in a row are one step of the path.
        ``corner`` is the upper left one, ``size`` that of one square.
        """
        steps: dict[int, str] = {}
        for row, line in enumerate(levels):
            edges = [0, *(np.flatnonzero(np.diff(line)) + 1).tolist(), len(line)]
            for start, end in pairwise(edges):
                level = int(line[start])
                steps[level] = steps.get(level, "") + f"M{start} {row}h{end - start}v1h{start - end}z"
        place = f"matrix({size[0]:.4g} 0 0 {size[1]:.4g} {num(corner[0])} {num(corner[1])})"
        paths = "".join(f'<path {paints[level]} d="{steps[level]}"/>' for level in sorted(steps) if level >= 0)
        self.add(f'<g class="map" transform="{place}">{paths}</g>')

    def inside(self) -> str:
        """What is drawn, without the element around it."""
        return "".join([*self._back, *self._items])

    def svg(self, attributes: str = "", head: str = "") -> str:
        """The drawing as an element of a page; ``head`` stands before what is drawn."""
        size = f'viewBox="0 0 {num(self.width)} {num(self.height)}"{attributes}'
        label = f'role="img" aria-label="{escape(self.label)}"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {label} {size}>{head}{self.inside()}</svg>'


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _note(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""


def _polygon(points: Iterable[tuple[float, float]]) -> str:
    """A closed path of points around (0, 0), relative to where it starts from."""
    steps, last = "", (0.0, 0.0)
    for x, y in points:
        steps += f"{'l' if steps else 'm'}{num(x - last[0])} {num(y - last[1])}"
        last = x, y
    return steps + "z"


def _ring(count: int, radius: float, inner: float = 0.0, turn: float = 0.0) -> str:
    """A regular polygon with a corner at the top, or a star where there is an ``inner`` radius; ``turn`` in quarters
    of a circle."""
    radii = [radius, inner] * count if inner else [radius] * count
    angles = [math.pi / 2 * turn + 2 * math.pi * i / len(radii) for i in range(len(radii))]
    return _polygon((r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles))


def _quarters(x: float, y: float, turn: int) -> tuple[float, float]:
    """A point turned by quarters of a circle."""
    for _ in range(turn):
        x, y = -y, x
    return x, y


_CORNER = [(1.3, -4.0), (1.3, -1.3), (4.0, -1.3)]
_PLUS = [(x, y) for turn in range(4) for x, y in (_quarters(*point, turn) for point in _CORNER)]
MARKERS = {
    "circle": "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "square": _polygon([(-3.3, -3.3), (3.3, -3.3), (3.3, 3.3), (-3.3, 3.3)]),
    "bar": _polygon([(-0.8, -5), (0.8, -5), (0.8, 5), (-0.8, 5)]),
    "diamond": _ring(4, 4.7), "thin": _polygon([(0, -5), (2.8, 0), (0, 5), (-2.8, 0)]),
    "up": _ring(3, 4.6), "right": _ring(3, 4.6, turn=1), "down": _ring(3, 4.6, turn=2), "left": _ring(3, 4.6, turn=3),
    "plus": _polygon(_PLUS), "cross": _polygon([((x - y) * 0.75, (x + y) * 0.75) for x, y in _PLUS]),
    "star": _ring(5, 5.2, 2.2), "pentagon": _ring(5, 4.4), "hexagon": _ring(6, 4.2)}
