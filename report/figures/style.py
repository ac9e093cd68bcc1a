"""How figures look: colours, markers, hatches, and the way from a matplotlib figure to SVG text.

Colours are those of Okabe and Ito, which people who see few colours can tell apart, without the yellow that no
white page shows.  Colour never stands alone: markers and hatches differ too, and everything bright has a dark edge.
Text stays text, so that it can be searched, and a name is never read as a formula.
"""

import re
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from core.digest import atomic_write
from core.errors import UserError

BLACK, GREY = "#000000", "#595959"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
MARKERS = ("o", "^", "v", "P", "X", "<", ">", "*", "p", "h", "d")
HATCHES = ("", "//", "\\\\", "xx", "--", "||", "++")  # lines alone: a pattern of dots takes 100 kB of SVG
FIXED = {"fp16": (BLACK, "|", ""), "uniform": (BLACK, "s", ""), "random": (GREY, "D", "//")}
RC = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"], "font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "legend.fontsize": 7.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": False, "axes.linewidth": 0.8, "hatch.linewidth": 0.6, "hatch.color": "#00000099", "lines.markersize": 5.5,
    "svg.fonttype": "none", "text.parse_math": False, "figure.facecolor": "white", "savefig.facecolor": "white"}


@dataclass(frozen=True)
class Look:
    """Colour, marker and hatch of one method."""

    color: str
    marker: str
    hatch: str


@dataclass(frozen=True)
class Figure:
    """One figure with its numbers; without numbers to draw it says what is lacking."""

    key: str  # its place on the page
    title: str  # the question that it answers
    how: str  # how to read it
    numbers: tuple[tuple[str, pd.DataFrame], ...]  # captioned tables, shown under it
    svg: str = ""
    lack: str = ""


def looks(methods) -> dict[str, Look]:
    """The same look for a method in every figure of a part; controls are black and grey in all parts."""
    others = [m for m in methods if m not in FIXED]
    cycle = {m: (OKABE_ITO[i % len(OKABE_ITO)], MARKERS[i % len(MARKERS)], HATCHES[i % len(HATCHES)]) for i, m in enumerate(others)}
    return {m: Look(*(FIXED[m] if m in FIXED else cycle[m])) for m in methods}


def canvas(width: float, height: float, **layout) -> Canvas:
    """An empty figure of this many inches, bound to no window system."""
    with matplotlib.rc_context(RC):
        out = Canvas(figsize=(width, height), **layout)
        FigureCanvasSVG(out)
        return out


def svg(drawn: Canvas, key: str, title: str) -> str:
    """A figure as SVG text to stand inside a page: the same bytes for the same drawing, a label for screen readers.

    Several figures share a page.  Names inside a drawing are digests salted by its key, so no two are alike; those that nothing refers to go.
    """
    out = StringIO()
    with matplotlib.rc_context(RC | {"svg.hashsalt": key}):
        drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.S)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r'font-family: [^;"]*(; )?', "", text)  # said once below, not at every word
    head = f'<svg role="img" aria-label="{escape(title)}" font-family="{", ".join(RC["font.sans-serif"])}, sans-serif" '
    return re.sub(r">\s+<", "><", text).strip().replace("<svg ", head, 1)


def save(path: Path, text: str) -> Path:
    """Write a page or a drawing whole or not at all."""
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"nothing can be written to {str(path)!r}: give the name of a file in a folder that exists, such as report.html")
        atomic_write(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written ({error.strerror}); give the name of a file elsewhere") from None
    return path
