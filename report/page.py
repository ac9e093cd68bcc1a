"""One self-contained page: the answer first, then figures and tables, the numbers under each.

Everything that comes from a result file is quoted by the template engine or before ``table_html``; as a second wall the
page's own policy lets no script run but the one whose digest it names, and nothing be loaded.  The page is complete
without the script, which sorts tables, closes the contents, and opens details before printing in older browsers.
"""

import base64
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from core.activations import ACTIVATIONS
from core.errors import UserError
from report.figures import cards
from report.figures.build import figures
from report.figures.frames import Part, parts_of
from report.figures.style import DARK, LAYOUT, LIGHT, STYLE, Figure, looks, save, variables
from report.figures.sweeps import sweep_figure
from report.records import Result, load_results
from report.settings_box import settings_box
from report.tables.sweeps import axes, sweep
from report.tables.tables import TableData
from report.text.details import categories, small_categories
from report.text.lines import (
    DETAIL_LEGEND,
    LEGEND,
    MARK_TEST,
    MARKS,
    POWER,
    chance_line,
    conditioning_lines,
    falling_line,
    family_line,
    power_line,
)
from report.text.render import sheets_of
from report.text.sheets import Sheet

HERE = Path(__file__).parent
LEGENDS = (cards.LEGEND, LEGEND, MARKS["markdown"] + MARK_TEST, DETAIL_LEGEND)  # said once a page
LONG, WIDEST = 40, 12  # letters of a cell that wraps; columns of a table beside the first


def write(results_dir: Path | str, out_path: Path | str, results: list[Result] | None = None) -> Path:
    """Write the report of a results folder, or of those of its results that are given.

    A folder without results is a UserError and leaves no page.
    """
    out_path = Path(out_path)
    results = load_results(Path(results_dir)) if results is None else results
    parts = parts_of(results)
    if not parts:
        raise UserError(f"no data: {str(results_dir)!r} holds no results, so no report was written; run "
                        "run_taq_icml.py first or pass --results_dir")
    return save(out_path, render(parts, sweeps_of(results)))


def sweeps_of(results: Sequence[Result]) -> list[Figure]:
    """What bits of activations do, for each of their numbers in which rows differ."""
    drawn = []
    for axis in sorted(set(axes(results)) & set(ACTIVATIONS)):
        with suppress(UserError):  # no row stands at two values of it
            drawn.append(sweep_figure(sweep(results, axis), axis))
    return drawn


@cache
def environment() -> Environment:
    """The template engine, which quotes all that is not marked as ours."""
    engine = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                         lstrip_blocks=True)
    engine.globals.update(frame_html=frame_html, sheet_html=sheet_html, Markup=Markup, style=Markup(STYLE + LAYOUT),
                          light=Markup(variables(LIGHT)), dark=Markup(variables(DARK)))
    return engine


def render(parts: list[Part], sweeps: Sequence[Figure] = ()) -> str:
    """The page's text; ``sweeps`` stand after the parts, since their lines go through several."""
    script, sheet = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    models = list(dict.fromkeys(p.cells[0].model.name for p in parts if p.cells))
    page = environment().get_template("page.html").render(
        heading=", ".join(models) or "no finished results", parts=[_shown(part) for part in parts], legends=LEGENDS,
        sweeps=_said_once(list(sweeps)), script=script, sheet=sheet, script_hash=f"sha256-{digest}")
    return page.lstrip()


def _shown(part: Part) -> dict:
    """What the template shows of a part."""
    look, drawn = looks(part.methods), _said_once(figures(part))
    answers = [{"budget": table.about["avg_bits"], "cards": cards.cards(table, look), "missing": len(table.missing)}
               for table in part.tables if table.rows]
    return {"key": part.key, "title": part.title, "answers": answers, "settings": settings_box(part),
            "tables": [_table(t) for t in part.tables], "first": drawn[:len(part.tables)],
            "rest": drawn[len(part.tables):]}


def _said_once(drawn: list[Figure]) -> list[Figure]:
    """The same figures; how to read a kind of figure stands above the first of it only."""
    first: dict[str, Figure] = {}
    for figure in drawn:
        if not figure.lack:
            first.setdefault(figure.how, figure)
    return [replace(figure, how=f"To be read as “{first[figure.how].title}”")
            if first.get(figure.how, figure) is not figure else figure for figure in drawn]


def _table(table: TableData) -> dict:
    """Overview, details, and what must be read with them; the cards say the verdict, the page's end the legends."""
    first, *more = sheets_of(table, True)
    power = [line for dataset in table.datasets if (line := power_line(table, dataset))]
    small = [line for d in table.datasets for line in small_categories(categories(table, d).values(), d)]
    return {"title": table.title, "overview": first if table.rows else None, "details": more,
            "lines": [*falling_line(table), *chance_line(table), *conditioning_lines(table),
                      *([POWER] if power else []), *power, *table.notes],
            "families": [*(family_line(table, dataset) for dataset in table.datasets), *small]}


def section(figure: Figure) -> str:
    """One figure as HTML for a notebook: title, how to read it, drawing, numbers; or what is lacking."""
    return environment().get_template("macros.html").module.alone(figure)


def frame_html(frame: pd.DataFrame) -> Markup:
    """A frame as a table: quoted, numbers to five digits, nothing where there is no number."""
    columns = [[_cell(value) for value in frame[name].tolist()] for name in frame.columns]
    long = columns and max(map(len, columns[-1]), default=0) > LONG
    return table_html(list(map(str, frame.columns)), columns, "text" if long else "")


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.5g}" if value == value else ""
    return "" if value is None else escape(str(value))


def sheet_html(sheet: Sheet) -> Markup:
    """A sheet of text as a table: the best bold, those not told apart from it with a ~.

    A very wide one becomes several, each with the first column.
    """
    columns = {name: [_marked(row[name], signs[name]) for row, signs in zip(sheet.rows, sheet.signs)]
               for name in sheet.names}
    first, runs = sheet.names[0], [[]]
    for group in sheet.groups:
        if len(runs[-1]) + len(group) > WIDEST and runs[-1]:
            runs.append([])
        runs[-1] += group
    return Markup("").join(table_html([first, *names], [columns[name] for name in (first, *names)]) for names in runs)


def _marked(cell: str, mark: str) -> str:
    text = escape(cell)
    return {"best": f"<b>{text}</b>", "tied": f"{text}&nbsp;~"}.get(mark, text)


def table_html(names: Sequence[str], columns: Sequence[Sequence[str]], kind: str = "") -> Markup:
    """Columns of quoted text as a table that scrolls where it is too wide; "text": its last column holds sentences."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "\n".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in zip(*columns))
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return Markup(f'<div class="scroll">{table}</div>')
