"""How figures look: colours, markers, hatches, the style sheet, and what a figure is.

Colours are those of Okabe and Ito, which people who see few colours can tell apart, without the yellow that no white
page shows.  Colour never stands alone: markers and hatches differ too, and everything bright has an edge in the colour
of the text. Ink, paper, grey and lines are variables: a page sets them for light, dark and print, a file of its own
has the light ones.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

import pandas as pd

from core.digest import atomic_write
from core.errors import UserError
from report.figures.svg import Drawing, num

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
LIGHT = {"paper": "#ffffff", "ink": "#111111", "mute": "#595959", "line": "#dddddd", "soft": "#f2f2f2",
         "link": "#00508a"}
DARK = {"paper": "#16181d", "ink": "#e8e8e8", "mute": "#a8a8a8", "line": "#3a3d44", "soft": "#24272e",
        "link": "#8cc4ff"}
# the six steps from dark blue to yellow are those of cividis (Nuñez, Anderton and Renslow 2018), even in lightness
CIVIDIS = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")
INK, MUTE, PAPER = "currentColor", "var(--mute)", "var(--paper)"
NAMED = r"(?:currentColor|var\(--(\w+)\))"  # a colour that a page gives
BOX = "M1 1h18v10H1z"
MARKERS = ("circle", "up", "down", "plus", "cross", "left", "right", "star", "pentagon", "hexagon", "thin")
HATCHES = ("", "M-1 1l2-2M0 6L6 0M5 7l2-2", "M-1 5l2 2M0 0l6 6M5-1l2 2", "M0 6L6 0M0 0l6 6", "M0 3h6", "M3 0v6",
           "M0 3h6M3 0v6")
FIXED = {"fp16": (INK, "bar", ""), "uniform": (INK, "square", ""), "random": (MUTE, "diamond", HATCHES[1])}
STYLE = """
.chart{background:var(--paper);color:var(--ink);font:11px system-ui,"DejaVu Sans",Verdana,Arial,sans-serif}
.chart text{fill:currentColor}.chart .s{font-size:10px}.chart .b{font-weight:700}.chart .e{text-anchor:end}
.chart .m{text-anchor:middle}.chart .white{fill:#fff}
.chart .halo{paint-order:stroke;stroke:var(--paper);stroke-width:3px}
.chart .axis,.chart .dash,.chart .front{fill:none;stroke:currentColor}.chart .dash{stroke-dasharray:5 3}
.chart .grid{stroke:var(--line)}.chart .whisker{fill:none;stroke:var(--mute);stroke-width:1.2}
.chart .mark{stroke:currentColor;stroke-width:.8}.chart .tick{stroke:currentColor;stroke-width:1.8}
.chart .bar{stroke:currentColor;stroke-width:.6}
.chart .hatch{fill:none;stroke:currentColor;stroke-opacity:.6;stroke-width:.8}
.chart .map{shape-rendering:crispEdges}.chart .frame{fill:none;stroke:var(--mute);stroke-width:.6}
"""
LAYOUT = """
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,var(--w)),1fr));gap:12px 16px;
overflow-x:auto}
.panels svg{width:100%;height:auto;min-width:calc(.85*var(--w));max-width:calc(1.45*var(--w))}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;margin:6px 0;padding:0;font-size:13px}
.key svg{vertical-align:middle}
"""  # of panels and legends on a page


@dataclass(frozen=True)
class Look:
    """Colour, marker and hatch of one method."""

    color: str
    marker: str
    hatch: str  # a path in a square of six pixels; empty: none

    def drawing(self) -> Drawing:
        """The marker alone, for legends."""
        drawing = Drawing(14, "")
        drawing.marker((7, 7), self.marker, self.color)
        return drawing


@dataclass(frozen=True)
class Figure:
    """One figure with its numbers; without numbers to draw it says what is lacking."""

    key: str  # its place on the page
    title: str  # the question that it answers
    how: str  # how to read figures of its kind
    numbers: tuple[tuple[str, pd.DataFrame], ...] = ()  # captioned tables, shown under it
    note: str = ""  # what holds for this one figure of its kind
    svg: str = ""  # its panels and its legend
    lack: str = ""


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """The same look for a method in every figure of a part; controls are black and grey in all parts."""
    methods = list(methods)
    places = {m: i for i, m in enumerate(m for m in methods if m not in FIXED)}
    cycle = {m: tuple(of[i % len(of)] for of in (OKABE_ITO, MARKERS, HATCHES)) for m, i in places.items()}
    return {m: Look(*(FIXED[m] if m in FIXED else cycle[m])) for m in methods}


def blend(share: float) -> str:
    """The colour of a share, 0 to 1, on the scale from dark blue to yellow."""
    at = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    left = min(int(at), len(CIVIDIS) - 2)
    one, two = ([int(c[i:i + 2], 16) for i in (1, 3, 5)] for c in CIVIDIS[left:left + 2])
    return "#" + "".join(f"{round(a + (b - a) * (at - left)):02x}" for a, b in zip(one, two))


def hatched(drawing: Drawing, steps: str, hatch: str, key: str) -> None:
    """Lines over a shape; ``key`` is the pattern's name, which no other drawing of the page has."""
    if steps and hatch:
        drawing.add(f'<pattern id="{key}" width="6" height="6" patternUnits="userSpaceOnUse"><path class="hatch" '
                    f'd="{hatch}"/></pattern><path fill="url(#{key})" d="{steps}"/>')


def chunks(items: Sequence, most: int) -> list[Sequence]:
    """A long list as several of nearly equal length, none longer than ``most``."""
    count = -(-len(items) // most)
    edges = [round(i * len(items) / count) for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(edges)]


def panels(drawings: Sequence[Drawing], more: str = "") -> str:
    """The panels of a figure, as many side by side as the page has room for, and a legend below them."""
    width = num(max(d.width for d in drawings))
    return f'<div class="panels" style="--w:{width}px">{"".join(d.svg() for d in drawings)}</div>{more}'


def small(drawing: Drawing) -> str:
    """A drawing among words, which say what it shows."""
    return f'<svg class="chart" aria-hidden="true" width="{num(drawing.width)}" height="14">{drawing.inside()}</svg>'


def legend(items: Iterable[tuple[Drawing, str]]) -> str:
    """Small drawings with their words, in a list that wraps where the page is narrow."""
    return f'<ul class="key">{"".join(f"<li>{small(drawing)} {escape(words)}</li>" for drawing, words in items)}</ul>'


def swatch(paint: str, kind: str = "frame") -> Drawing:
    """A small box of a legend."""
    drawing = Drawing(20, "")
    drawing.add(f'<path {paint} d="{BOX}"/>')
    drawing.path(BOX, kind)
    return drawing


def variables(values: dict[str, str]) -> str:
    """The variables as a style sheet names them."""
    return ";".join(f"--{name}:{value}" for name, value in values.items())


def alone(drawings: Sequence[Drawing], lines: Sequence[str], most: int = 12) -> str:
    """Panels side by side, at most so many, under lines of words, as a file of its own: light, on white paper, whatever
    page it stands on."""
    gap, head = 12.0, 18.0 + 17 * len(lines)
    rows = [drawings[at:at + most] for at in range(0, len(drawings), most)]
    whole = Drawing(max(sum(d.width + gap for d in row) for row in rows) + gap, lines[0])
    whole.height = head + sum(max(d.height for d in row) + gap for row in rows)
    whole.path(f"M0 0H{num(whole.width)}V{num(whole.height)}H0z", "", PAPER)
    for i, words in enumerate(lines):
        whole.text(2 * gap, 22 + 17 * i, words, "" if i else "b", room=whole.width - 4 * gap)
    top = head
    for row in rows:
        left = gap
        for drawing in row:
            whole.add(f'<g transform="translate({num(left)} {num(top)})">{drawing.inside()}</g>')
            left += drawing.width + gap
        top += max(d.height for d in row) + gap
    sheet = re.sub(NAMED, lambda m: LIGHT[m[1] or "ink"], STYLE)
    text = whole.svg(f' width="{num(whole.width)}" height="{num(whole.height)}"', f"<style>{sheet}</style>")
    return re.sub(f'(fill|stroke)="{NAMED}"', lambda m: f'{m[1]}="{LIGHT[m[2] or "ink"]}"', text) + "\n"


def png(drawing: str) -> bytes:
    """A drawing of :func:`alone` as pixels, twice as many a side as it has units."""
    import vl_convert

    return vl_convert.svg_to_png(drawing, scale=2)


def save(path: Path, text: str) -> Path:
    """Write a page or a drawing whole or not at all; a drawing under a name that ends in .png as pixels."""
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"nothing can be written to {str(path)!r}: give the name of a file in a folder that "
                            "exists, such as report.html")
        atomic_write(path, png(text) if path.suffix == ".png" else text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written ({error.strerror}); give the name of a file elsewhere"
                        ) from None
    return path
