"""Tables and comparisons as Markdown, LaTeX, CSV and JSON; report/text/terminal.py prints them for a person.

Best and tied rows are marked in every form: ``*`` and ``~`` on a terminal (and colour), bold and ``~`` in Markdown,
bold and underlined in LaTeX, ``best_accuracy`` and ``best_loglik`` in CSV and JSON.
"""

import csv
import io
import json
import math
from collections.abc import Sequence

from core.errors import UserError
from report.tables.faithfulness import Faithfulness
from report.tables.pair import Story, as_document
from report.tables.sweeps import Line
from report.tables.tables import TableData
from report.text import faithfulness, pair, seeds, sweeps
from report.text.details import details as detail_sheets
from report.text.lines import footnotes, verdict
from report.text.sheets import Sheet, overview_sheet

__all__ = ["FORMATS", "footnotes", "leads_text", "sheets_of", "story_text", "sweep_text", "text"]

FORMATS = ("terminal", "markdown", "latex", "csv", "json")
SCHEMA = 1  # of the JSON form
NOTHING = "no data: no cell of this table has a result"


def sheets_of(table: TableData, detailed: bool) -> list[Sheet]:
    """The overview and, if asked, the details of each data set."""
    more = table.datasets if detailed else ()
    return [overview_sheet(table), *(one for dataset in more for one in detail_sheets(table, dataset))]


def text(tables: Sequence[TableData], kind: str, details: bool = False, curves: Sequence[Faithfulness] = ()) -> str:
    """Return the tables, and faithfulness curves, in one of the file formats; JSON holds every number of both, CSV of
    the tables, unrounded.
    """
    if kind == "csv":
        return _csv([row | {"table": table.title} for table in tables for row in named_rows(table)])
    if kind == "json":
        more = {"faithfulness": faithfulness.points(curves)} if curves else {}
        return as_json({"schema": SCHEMA, "tables": [document(table) for table in tables], **more})
    blocks = []
    for table in tables:
        blocks += [sheet_text(one, kind) for one in sheets_of(table, details)]
        blocks.append(lines_text(footnotes(table, kind, details), kind))
    if curves:
        blocks += [*(sheet_text(one, kind) for one in faithfulness.sheets(curves)),
                   lines_text(faithfulness.lines(curves), kind)]
    return "\n\n".join(blocks) + "\n"


def named_rows(table: TableData) -> list[dict]:
    """The rows, each with the table's model, budget and what else sets the table apart from others."""
    own = {"model": table.about["model"]["name"], "avg_bits": table.about["avg_bits"]}
    return [table.about["apart"] | own | row for row in table.rows]


def _csv(rows: Sequence[dict]) -> str:
    """One line a row under the names of all rows; nothing where there is no value."""
    if not rows:
        return ""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def document(table: TableData) -> dict:
    """A table as plain data: rows, facts and everything that is said below it."""
    return {"title": table.title, **table.about, "rows": named_rows(table), "datasets": table.facts,
            "missing": list(table.missing), "verdict": verdict(table), "notes": list(table.notes)}


def as_json(content: dict) -> str:
    """Strict JSON; what is not a number is null."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lines_text(lines: Sequence[str], kind: str) -> str:
    """Lines below a table."""
    return "\n".join(f"% {line}" if kind == "latex" else f"- {line}" for line in lines)


def sheet_text(sheet: Sheet, kind: str) -> str:
    """One sheet in Markdown or LaTeX."""
    if not sheet.names:
        return f"### {sheet.title}\n\n{NOTHING}" if kind == "markdown" else f"% {sheet.title}: {NOTHING}"
    mark, head = (_markdown_cell, _markdown) if kind == "markdown" else (_tex_cell, _tex)
    rows = [[mark(row[name], signs[name]) for name in sheet.names]
            for row, signs in zip(sheet.rows, sheet.signs, strict=True)]
    names = [head(name) for name in sheet.names]
    if kind == "markdown":
        lines = [names, [":---", *["---:"] * (len(names) - 1)], *rows]
        return f"### {sheet.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    body = "".join(f"{' & '.join(row)} \\\\\n" for row in rows)
    return TEX_TABLE % (_tex(sheet.title), "r" * (len(names) - 1), " & ".join(names), body)


def sweep_text(lines: Sequence[Line], axis: str, kind: str) -> str:
    """The lines of a sweep in one of the file formats; CSV and JSON hold every point, unrounded."""
    rows = [{"dataset": line.dataset, "row": line.label, "level": line.level, "metric": line.metric}
            | {axis if name == "axis" else name: value for name, value in point.items()}
            for line in lines for point in line.points]
    if kind == "csv":
        return _csv(rows)
    if kind == "json":
        return as_json({"schema": SCHEMA, "axis": axis, "points": rows})
    return "\n\n".join(sheet_text(one, kind) for one in sweeps.sheets(lines, axis)) + "\n"


def leads_text(lines: Sequence[dict], names: Sequence[str], kind: str) -> str:
    """Two rows over seeds in one of the file formats; CSV and JSON hold every number, unrounded."""
    if kind == "csv":
        return _csv(lines)
    if kind == "json":
        return as_json({"schema": SCHEMA, "rows": list(names), "metric": lines[0]["metric"], "leads": list(lines)})
    notes = lines_text(seeds.notes(lines, names), kind)
    return f"{sheet_text(seeds.leads_sheet(lines, names), kind)}\n\n{notes}\n"


def story_text(story: Story, kind: str, every: bool) -> str:
    """The comparison of two cells as Markdown or JSON; JSON lists every question that flipped."""
    if kind == "json":
        return as_json(as_document(story))
    if kind != "markdown":
        raise UserError(f"--format {kind} has no meaning with --compare; use --format terminal, markdown or json")
    blocks = [sheet_text(one, kind) for one in pair.sheets(story, every)]
    return "\n\n".join([*blocks, lines_text(pair.lines(story, every), kind)]) + "\n"


def _markdown(value: str) -> str:
    return value.replace("|", r"\|")


def _markdown_cell(value: str, sign: str) -> str:
    return {"best": "**%s**", "tied": "%s ~"}.get(sign, "%s") % _markdown(value)


TEX_TABLE = r"""\begin{table}
\caption{%s}
\begin{tabular}{l%s}
\toprule
%s \\
\midrule
%s\bottomrule
\end{tabular}
\end{table}
"""
TEX = {"\\": r"\textbackslash{}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "Δ": r"$\Delta$", "–": "--", "±": r"$\pm$", "−": "$-$",
       "≠": r"$\neq$", "→": r"$\to$", "<": "$<$", ">": "$>$"}


def _tex(value: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in value)


def _tex_cell(value: str, sign: str) -> str:
    return {"best": r"\textbf{%s}", "tied": r"\underline{%s}"}.get(sign, "%s") % _tex(value)
