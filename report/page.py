"""One self-contained page: tables, figures, the numbers under each.

Everything that comes from a result file is quoted by the template engine or by pandas; as a second wall the page's own
policy lets no script run but the one whose digest it names, and nothing be loaded.  The page is complete without the script,
which only sorts tables.
"""

import base64
import hashlib
import re
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from core.errors import UserError
from report.figures.curves import figures
from report.figures.frames import Part, parts_of
from report.figures.style import Figure, save
from report.records import load_results
from report.tables.tables import TableData
from report.text.render import footnotes, sheets_of

SCRIPT = """
for (const head of document.querySelectorAll("thead th")) {
  head.setAttribute("aria-sort", "none");
  head.addEventListener("click", () => {
    const table = head.closest("table"), column = [...head.parentNode.children].indexOf(head), up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => { const text = row.cells[column].textContent, n = parseFloat(text.replace("<", "")); return isNaN(n) ? text : n; };
    const order = (a, b) => typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1;
    const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * order(value(a), value(b)));
    table.tBodies[0].append(...rows);
  });
}
"""


def write(results_dir: Path | str, out_path: Path | str, results: list[dict] | None = None) -> Path:
    """Write the report of a results folder, or of those of its results that are given.

    A folder without results is a UserError and leaves no page.
    """
    out_path = Path(out_path)
    parts = parts_of(load_results(Path(results_dir)) if results is None else results)
    if not parts:
        raise UserError(f"no data: {str(results_dir)!r} holds no results, so no report was written; run run_taq_icml.py first or pass --results_dir")
    return save(out_path, render(parts))


def environment() -> Environment:
    """The template engine, which quotes all that is not marked as ours."""
    made = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True)
    made.globals.update(zip=zip, frame=frame, drawn=lambda figure: Markup(figure.svg))
    return made


def render(parts: list[Part]) -> str:
    """The page's text."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    names = list(dict.fromkeys(p.cells[0]["model"]["name"] for p in parts if p.cells))
    shown = [{"key": p.key, "title": p.title, "tables": [_table(t) for t in p.tables], "figures": figures(p)} for p in parts]
    return environment().get_template("page.html").render(heading=", ".join(names) or "no finished results", parts=shown, script=Markup(SCRIPT),
                                                          script_hash=f"sha256-{digest}").lstrip()


def section(figure: Figure) -> str:
    """One figure as HTML for a notebook: title, how to read it, drawing, numbers; or what is lacking."""
    return environment().get_template("macros.html").module.section(figure, "notebook")


def _table(table: TableData) -> dict:
    """Overview, details and footnotes as every other coat of the table has them; marks as Markdown names them."""
    first, *more = sheets_of(table, True)
    return {"title": table.title, "overview": first if len(table.frame) else None, "details": more, "lines": footnotes(table, "markdown", True)}


def frame(table: pd.DataFrame) -> Markup:
    """A frame as an HTML table: quoted, numbers to five digits, nothing where there is no number."""
    text = table.to_html(index=False, border=0, escape=True, na_rep="", float_format=lambda v: f"{v:.5g}", justify="unset")
    return Markup('<div class="scroll">') + Markup(re.sub(r">\s+<", "><", text)) + Markup("</div>")
