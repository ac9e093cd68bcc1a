"""Tables as terminal text, Markdown, LaTeX, CSV, JSON or HTML.

Best and tied rows are marked in every coat: ``*`` and ``~`` on a terminal (and colour), bold and ``~`` in Markdown, bold and
underlined in LaTeX, columns best_accuracy and best_loglik in CSV and JSON.
"""

import json
import math

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.errors import UserError
from report.tables.pair import Story, as_document
from report.tables.tables import TableData
from report.text import pair
from report.text.sheets import Sheet, detail, family_line, overview, overview_sheet, power_line, verdict
from report.text.sheets import details as detail_sheets

FORMATS = ("terminal", "markdown", "latex", "csv", "json", "html")
SCHEMA = 1  # of the JSON coat
LEGEND = ("bits: stored bits a weight over the quantized linears, metadata included. EM/acc: percent right. LL: log-likelihood of the "
          "gold answer, nats a token. ΔLL: its paired change against full precision ± half its 95 % bootstrap interval. Higher is better. "
          "Rows of several seeds: mean ± sd over the seeds.")
MARKS = {"terminal": "*: best at equal bits; ~: not told apart from it", "markdown": "Bold: best at equal bits; ~: not told apart from it",
         "latex": "Bold: best at equal bits; underlined: not told apart from it", "html": "Rows are not marked"}
MARK_TEST = " (paired sign-flip test over documents, 5 %, Holm-corrected; rows with bits of their own are not ranked)."
POWER = "Smallest true difference that one paired comparison shows with 80 % power at 5 %, two-sided:"
DETAIL_LEGEND = ("p: exact McNemar of accuracy; p LL: paired sign-flip test of gold log-likelihood; both Holm-corrected over the data set's rows. "
                 "Δ accuracy: Agresti-Min interval. lost/gained: answers that turned wrong/right. same answer: percent answered as full precision "
                 "does. KL: over the options, nats. unparsed, cut: percent of documents. ≠: not at uniform's bits (both are shown), so no p.")
COLOURS = {"best": "bold green", "tied": "green"}
SIGNS = {"best": "*", "tied": "~"}
WARNINGS = ("incomplete", "no result")
NOT_EQUAL = "not at equal bits"
NOTHING = "no data: no cell of this table has a result"


def sheets_of(table: TableData, detailed: bool) -> list[Sheet]:
    """The overview and, if asked, the details of each data set."""
    more = table.datasets if detailed else ()
    return [overview_sheet(table), *(part for dataset in more for part in detail_sheets(table, dataset))]


def footnotes(table: TableData, kind: str, detailed: bool) -> list[str]:
    """What must be read with a table: legends, verdict, power, notes."""
    power = [line for dataset in table.datasets if (line := power_line(table, dataset))]
    families = [family_line(table, dataset) for dataset in table.datasets] if detailed else []
    return [LEGEND, MARKS[kind] + MARK_TEST, *([DETAIL_LEGEND] if detailed else []), *families, *verdict(table), *([POWER] if power else []), *power,
            *table.notes]


def show(tables: list[TableData], console: Console, details: bool = False) -> None:
    """Print tables for a person."""
    for table in tables:
        for part in sheets_of(table, details):
            show_sheet(part, console)
        show_lines(footnotes(table, "terminal", details), console)


def show_lines(lines: list[str], console: Console) -> None:
    """Print what stands below a table; failures and gaps in colour, legends dim."""
    for line in lines:
        warning = "red" if line.startswith("FAILED") else "yellow" if line.startswith(WARNINGS) or NOT_EQUAL in line else ""
        console.print(line, markup=False, style="dim" if line in (LEGEND, DETAIL_LEGEND, POWER) or line.endswith(MARK_TEST) else warning)
    console.print()


def show_sheet(part: Sheet, console: Console) -> None:
    """Print a sheet; one that is wider than the console in pieces, each with the first column."""
    if not len(part.frame.columns):
        console.print(Text(part.title, style="bold"))
        console.print(NOTHING)
    for number, names in enumerate(_pieces(part, console.width)):
        console.print(Text(part.title + (" (continued)" if number else ""), style="bold"))
        out = Table()
        for name in names:
            out.add_column(Text(name.replace(" ", "\n", 1)), justify="right" if out.columns else "left", overflow="fold")
        for index in part.frame.index:
            out.add_row(*(Text(_signed(part, name)[index], style=COLOURS.get(part.marks[name][index], "")) for name in names))
        console.print(out)


def _signed(part: Sheet, name: str) -> list[str]:
    """A column's cells with their marks; one that has any keeps room for them in every cell, so that digits stay below digits."""
    room = " " if part.marks[name].any() else ""
    return [f"{cell}{SIGNS.get(mark, room)}" for cell, mark in zip(part.frame[name], part.marks[name], strict=True)]


def _pieces(part: Sheet, width: int) -> list[list[str]]:
    """The columns of a sheet in runs of whole groups that fit the width, as few and as even as can be."""
    taken = {name: 3 + max(map(cell_len, (*_signed(part, name), *name.split(" ", 1)))) for name in part.frame.columns}

    def runs(room: int) -> list[list[str]]:
        out, left = [[part.frame.columns[0]]], room
        for group in part.groups:
            need = sum(taken[name] for name in group)
            if need > left and len(out[-1]) > 1:
                out.append([part.frame.columns[0]])
                left = room
            out[-1] += group
            left -= need
        return out

    if not len(part.frame.columns):
        return []
    room = width - 1 - taken[part.frame.columns[0]]
    count = len(runs(room))
    while count > 1 and room > 1 and len(runs(room - 1)) == count:
        room -= 1
    return runs(room)


def text(tables: list[TableData], kind: str, details: bool = False) -> str:
    """Return the tables in one of the file formats; CSV and JSON hold every number of every table, unrounded."""
    if kind == "csv":
        frames = [t.frame.assign(table=t.title) for t in tables if len(t.frame)]
        return pd.concat(frames).to_csv(index=False) if frames else ""
    if kind == "json":
        return as_json({"schema": SCHEMA, "tables": [document(table) for table in tables]})
    parts = []
    for table in tables:
        parts += _html(table, details) if kind == "html" else [sheet_text(part, kind) for part in sheets_of(table, details)]
        parts.append(lines_text(footnotes(table, kind, details), kind))
    return "\n\n".join(parts) + "\n"


def document(table: TableData) -> dict:
    """A table as plain data: rows, facts and everything that is said below it."""
    return {"title": table.title, **table.about, "rows": table.frame.to_dict("records"), "datasets": table.facts, "missing": list(table.missing),
            "verdict": verdict(table), "notes": list(table.notes)}


def as_json(content: dict) -> str:
    """Strict JSON; what is not a number is null."""
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lines_text(lines: list[str], kind: str) -> str:
    """Lines below a table."""
    return "\n".join({"html": f"<p>{line}</p>", "latex": f"% {line}"}.get(kind, f"- {line}") for line in lines)


def sheet_text(part: Sheet, kind: str) -> str:
    """One sheet in Markdown or LaTeX."""
    if not len(part.frame.columns):
        return f"### {part.title}\n\n{NOTHING}" if kind == "markdown" else f"% {part.title}: {NOTHING}"
    mark = _md if kind == "markdown" else _tex_marked
    names = list(part.frame.columns)
    cells = {name: [mark(cell, sign) for cell, sign in zip(part.frame[name], part.marks[name], strict=True)] for name in names}
    if kind == "markdown":
        return f"### {part.title}\n\n{pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)}"
    frame = pd.DataFrame({_tex(name): column for name, column in cells.items()})
    return frame.to_latex(index=False, caption=_tex(part.title), column_format="l" + "r" * (len(names) - 1))


def show_story(story: Story, console: Console, every: bool) -> None:
    """Print the comparison of two cells for a person."""
    for part in pair.sheets(story, every):
        show_sheet(part, console)
    show_lines(pair.lines(story, every), console)


def story_text(story: Story, kind: str, every: bool) -> str:
    """The comparison of two cells as Markdown or JSON; JSON holds every question that flipped."""
    if kind == "json":
        return as_json(as_document(story))
    if kind != "markdown":
        raise UserError(f"--compare does not print {kind}; use --format terminal, markdown or json")
    return "\n\n".join([*(sheet_text(part, kind) for part in pair.sheets(story, every)), lines_text(pair.lines(story, every), kind)]) + "\n"


def _html(table: TableData, detailed: bool) -> list[str]:
    """The overview and each data set's details as plain HTML."""
    frames = [(table.title, overview(table)), *((d, detail(table, d)) for d in (table.datasets if detailed else ()))]
    return [f"<h3>{title}</h3>\n{frame.to_html(index=False, border=0)}" for title, frame in frames]


def _md(cell: str, mark: str) -> str:
    plain = str(cell).replace("|", r"\|")
    return {"best": f"**{plain}**", "tied": f"{plain} ~"}.get(mark, plain)


TEX = {"\\": r"\textbackslash{}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
       "^": r"\textasciicircum{}", "Δ": r"$\Delta$", "–": "--", "±": r"$\pm$", "−": "$-$", "≠": r"$\neq$", "→": r"$\to$", "<": "$<$", ">": "$>$"}


def _tex_marked(cell: str, mark: str) -> str:
    return {"best": r"\textbf{%s}", "tied": r"\underline{%s}"}.get(mark, "%s") % _tex(cell)


def _tex(value) -> str:
    return "".join(TEX.get(ch, ch) for ch in str(value))
