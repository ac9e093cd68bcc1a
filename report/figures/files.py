"""A figure of a page as a file of its own: its panels below each other, its legend under them, light on white paper."""

import re
from html import unescape

from report.figures.style import Figure, alone
from report.figures.svg import Drawing, num

PANEL = re.compile(r'<svg xmlns="[^"]*" class="chart" role="img" aria-label="([^"]*)" viewBox="0 0 ([\d.]+) ([\d.]+)">'
                   r'(.*?)</svg>', re.DOTALL)
ENTRY = re.compile(r'<li><svg class="chart" aria-hidden="true" width="([\d.]+)" height="[\d.]+">(.*?)</svg> (.*?)</li>',
                   re.DOTALL)
LINE = 18.0


def standalone(figure: Figure) -> str:
    """The figure as SVG text; ValueError for one without a drawing."""
    drawings = [_panel(*match) for match in PANEL.findall(figure.svg)]
    if not drawings:
        raise ValueError(f"figure {figure.key} has no drawing")
    if entries := ENTRY.findall(figure.svg):
        drawings.append(_legend(entries))
    return alone(drawings, [figure.title], most=1)


def _panel(label: str, width: str, height: str, inside: str) -> Drawing:
    drawing = Drawing(float(width), unescape(label))
    drawing.height = float(height)
    drawing.add(inside)
    return drawing


def _legend(entries: list[tuple[str, str, str]]) -> Drawing:
    drawing = Drawing(360.0, "")
    for number, (width, inside, words) in enumerate(entries):
        drawing.add(f'<g transform="translate(0 {num(LINE * number)})">{inside}</g>')
        drawing.text(float(width) + 6, LINE * number + 11, unescape(re.sub(r"<[^>]*>", "", words)))
    drawing.height = LINE * len(entries) + 4
    return drawing
