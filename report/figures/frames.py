"""Every figure's numbers as plain frames, from the result files and the tables made of them.

A part holds cells that may be compared: one model under one set of settings.  Names come from files that
anybody may have written, so they are made harmless to fonts and XML here, once; quoting them for HTML is the page's task.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from core.registry import CONTROLS
from report.records import load_results
from report.tables.tables import TableData, comparable, group

SAME_BITS = 0.01  # rows within a budget's tolerance of each other stand at equal bits
LONGEST = 32  # letters of a name in a figure


@dataclass(frozen=True)
class Part:
    """One model under one set of settings: its tables and its finished cells."""

    key: str  # its place on the page
    title: str
    tables: tuple[TableData, ...]
    cells: tuple[dict, ...]  # result files as read, of the newest documents asked
    methods: tuple[str, ...]  # in the tables' order
    datasets: tuple[str, ...]  # likewise


def plain(value) -> str:
    """A name that a font and an XML file can hold: printable, on one line, not too long."""
    text = whole(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def whole(value) -> str:
    """The same, however long."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def load(folder: Path | str) -> list[Part]:
    """Every part of a results folder, the newest first; none where the folder holds no result."""
    return parts_of(load_results(Path(folder)))


def parts_of(results: list[dict]) -> list[Part]:
    """Every part of these results, the newest first."""
    found = comparable(results)
    return [_part(f"part-{i}", members, _apart(members, found)) for i, members in enumerate(found, 1)]


def _apart(members: list[dict], groups: list[list[dict]]) -> str:
    """Which settings tell this group from the others of the folder."""
    known = [g[0]["settings"] | {"machine": g[0]["machine"]} for g in groups]
    mine = members[0]["settings"] | {"machine": members[0]["machine"]}
    named = sorted(k for k in mine if any(k in other and other[k] != mine[k] for other in known))
    return "".join(f", {name} {mine[name]}" for name in named)


def _part(key: str, members: list[dict], apart: str) -> Part:
    head, tables = members[0], tuple(group(members))
    frames = [t.frame for t in tables if len(t.frame)]
    rows = pd.concat(frames) if frames else pd.DataFrame({"method": [], "dataset": []})
    fine = [c for c in members if c["status"] == "ok"]
    newest = {c["dataset"]: c["stages"]["evaluation"] for c in sorted(fine, key=lambda c: c["modified"])}
    title = f"{head['model']['name']} ({head['model']['dtype']}), {head['run_type']} run, {head['settings'].get('data_source')} data{apart}"
    methods = sorted(dict.fromkeys(rows["method"]), key=lambda m: CONTROLS.index(m) if m in CONTROLS else len(CONTROLS))
    cells = tuple(c for c in fine if c["stages"]["evaluation"] == newest[c["dataset"]])
    return Part(key, title, tables, cells, tuple(methods), tuple(dict.fromkeys(rows["dataset"])))


def budgets(part: Part) -> list[float | None]:
    """The budgets that the part's cells were held to, the smallest first; None alone where no cell has one."""
    return sorted({c["avg_bits"] for c in part.cells if c["avg_bits"] is not None}) or [None]


def points(table: TableData) -> pd.DataFrame:
    """One row a data set and method of a table: means over the seeds, and the span of the seeds' intervals."""
    out = []
    for (dataset, method), rows in table.frame.groupby(["dataset", "method"], sort=False) if len(table.frame) else ():
        row = {"dataset": dataset, "method": method, "bits": rows["bits"].mean(), "seeds": rows["seed"].nunique(), "documents": rows["n"].max(),
               "budgeted": bool(rows["budgeted"].any())}
        for name in ("accuracy", "d_loglik"):
            row |= {name: rows[name].mean(), f"{name}_low": rows[f"{name}_low"].min(), f"{name}_high": rows[f"{name}_high"].max()}
        out.append(row | {"loglik": rows["loglik"].mean()})
    return pd.DataFrame(out)


def curve(part: Part) -> pd.DataFrame:
    """The points of every budget, and which of them lie on the front or reach it with their interval.

    On the front: no row of equal or fewer bits has a higher value.  Bits closer than a budget's tolerance count as equal.
    """
    found = [p for p in map(points, part.tables) if len(p)]
    if not found:
        return pd.DataFrame()
    frame = pd.concat(found).drop_duplicates(["dataset", "method", "bits"]).reset_index(drop=True)
    for name in ("accuracy", "d_loglik"):
        frame[f"{name}_front"] = ""
        for _, rows in frame[(frame["method"] != "fp16") & frame[name].notna()].groupby("dataset"):
            for at, row in rows.iterrows():
                best = rows.loc[rows["bits"] <= row["bits"] + SAME_BITS, name].max()
                frame.loc[at, f"{name}_front"] = "front" if row[name] >= best else "reaches it" if row[f"{name}_high"] >= best else ""
    return frame


def of_first_seed(cells, budget: float | None) -> list[dict]:
    """The cells of a budget and those without one, of each method's lowest seed."""
    found: dict[tuple, dict] = {}
    for cell in sorted(cells, key=lambda c: (c["seed"], c["cell"])):
        if cell["avg_bits"] in (budget, None):
            found.setdefault((cell["dataset"], cell["method"]["name"]), cell)
    return list(found.values())


def layers(cell: dict) -> pd.DataFrame:
    """Block, kind, bits and share of sampled weights kept, one row a kind of linear in a block."""
    rows = []
    for fqn, bits in cell["bits"].get("per_linear", {}).items():
        block, kind = place(fqn)
        kept = (cell.get("probe") or {}).get(fqn, {}).get("kept")
        rows.append({"block": block, "kind": kind, "bits": bits, "kept": sum(kept) / len(kept) if kept else 0.0})
    if not rows:
        return pd.DataFrame(columns=["block", "kind", "bits", "kept"])
    return pd.DataFrame(rows).groupby(["block", "kind"], sort=False, as_index=False).mean()


def place(fqn: str) -> tuple[int, str]:
    """Block number and kind of a linear, of its dotted name; numbers after the block's (experts) are dropped."""
    parts = fqn.split(".")
    at = next((i for i, p in enumerate(parts) if re.fullmatch(r"\d+", p)), None)
    if at is None:
        return 0, plain(fqn)
    return int(parts[at]), plain(".".join(p for p in parts[at + 1:] if not p.isdigit()))


def strata(cells) -> pd.DataFrame:
    """Accuracy with its Wilson interval, one row a cell and category; nothing where the data has no categories."""
    return pd.DataFrame([
        {"dataset": c["dataset"], "method": c["method"]["name"], "seed": c["seed"], "category": name or "(none)", "n": found["n"]}
        | {k if k != "value" else "accuracy": v for k, v in found["accuracy"].items()}
        for c in cells for name, found in (c.get("strata") or {}).items() if len(c["strata"]) > 1 and found["accuracy"]])


def seconds(part: Part) -> pd.DataFrame:
    """Seconds of each stage, one row a data set, method, budget and stage: the mean over the seeds."""
    rows = [{"dataset": c["dataset"], "method": c["method"]["name"], "budget": c["avg_bits"], "stage": stage, "seed": c["seed"], "seconds": value}
            for c in part.cells for stage, value in (c.get("seconds") or {}).items()]
    if not rows:
        return pd.DataFrame()
    keys = ["dataset", "method", "budget", "stage"]
    return pd.DataFrame(rows).groupby(keys, sort=False, dropna=False).agg(seconds=("seconds", "mean"), seeds=("seed", "nunique")).reset_index()


def tidy(parts: list[Part]) -> pd.DataFrame:
    """All rows of all tables in one frame, with the table each stands in."""
    frames = [t.frame.assign(table=t.title, part=p.title) for p in parts for t in p.tables if len(t.frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
