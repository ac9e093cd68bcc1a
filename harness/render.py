"""Tables as terminal text, Markdown, LaTeX, CSV or HTML."""

import pandas as pd
from rich.console import Console
from rich.table import Table

from harness.tables import TableData
from harness.views import detail, overview, verdict

FORMATS = ("terminal", "markdown", "latex", "csv", "html")
LIKELIHOOD = ["gold LL", "ΔLL [95 %]", "LL against uniform [95 %]", "KL", "unparsed", "cut"]
LEGEND = ("bits: stored bits a weight over the quantized linears, metadata included. EM/acc: percent right. LL: log-likelihood of the "
          "gold answer, nats a token. ΔLL: its paired change against full precision ± half its 95 % bootstrap interval. Higher is better. "
          "Rows of several seeds: mean ± sd over the seeds.")
DETAIL_LEGEND = ("p: exact McNemar against full precision, Holm-corrected over the rows. lost/gained: answers that turned wrong/right. "
                 "KL: over the options, nats. unparsed, cut: percent of documents.")


def show(tables: list[TableData], console: Console, details: bool = False) -> None:
    """Print tables for a person."""
    for table in tables:
        _print(console, table.title, overview(table) if len(table.frame) else pd.DataFrame())
        console.print(LEGEND, style="dim")
        if details and len(table.frame):
            for dataset in table.frame["dataset"].unique():
                whole = detail(table, dataset)  # two tables: fourteen columns fit no terminal
                _print(console, f"{dataset}: answers", whole.drop(columns=LIKELIHOOD))
                _print(console, f"{dataset}: likelihood and format", whole[["method", *LIKELIHOOD]])
            console.print(DETAIL_LEGEND, style="dim")
        for line in (*verdict(table), *table.notes):
            console.print(f"  {line}", markup=False)
        console.print()


def _print(console: Console, title: str, frame: pd.DataFrame) -> None:
    out = Table(title=title, title_justify="left", title_style="bold")
    for name in frame.columns:
        out.add_column(name.replace(" ", "\n", 1), justify="left" if name == "method" else "right", overflow="fold")
    for row in frame.itertuples(index=False):
        out.add_row(*map(str, row))
    console.print(out)


def text(tables: list[TableData], kind: str, details: bool = False) -> str:
    """Return the tables in one of the file formats; CSV holds every number of every table, unrounded."""
    if kind == "csv":
        frames = [t.frame.assign(table=t.title) for t in tables if len(t.frame)]
        return pd.concat(frames).to_csv(index=False) if frames else ""
    parts = []
    for table in tables:
        frames = [(table.title, overview(table))]
        if details:
            frames += [(d, detail(table, d)) for d in table.frame["dataset"].unique()]
        for title, frame in frames:
            parts.append(_one(title, frame, kind))
        lines = [LEGEND, *([DETAIL_LEGEND] if details else []), *verdict(table), *table.notes]
        parts.append("\n".join({"html": f"<p>{line}</p>", "latex": f"% {line}"}.get(kind, f"- {line}") for line in lines))
    return "\n\n".join(parts) + "\n"


def _one(title: str, frame: pd.DataFrame, kind: str) -> str:
    if kind == "markdown":
        return f"### {title}\n\n{frame.to_markdown(index=False, disable_numparse=True)}"
    if kind == "latex":
        escaped = frame.map(_tex)
        escaped.columns = [_tex(c) for c in frame.columns]
        return escaped.to_latex(index=False, caption=_tex(title), column_format="l" + "r" * (len(frame.columns) - 1))
    return f"<h3>{title}</h3>\n{frame.to_html(index=False, border=0)}"


def _tex(value) -> str:
    out = str(value)
    for old, new in (("%", r"\%"), ("_", r"\_"), ("Δ", r"$\Delta$"), ("–", "--")):
        out = out.replace(old, new)
    return out
