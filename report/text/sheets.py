"""What people read of a table: the overview, a data set's details, the verdict; all as text, with marks beside it."""

from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from core.registry import CONTROLS
from report.tables.tables import TableData
from report.text.numbers import interval, mean_sd, nats, none, number, p_value, percent, points

ALL_CONTROLS = (*CONTROLS, "equal", "magnitude", "TaCQ-weight", "rtn")  # scores that see neither task nor data
UNEQUAL = "≠"


@dataclass(frozen=True)
class Sheet:
    """A frame of text; ``marks`` has its shape and says "best", "tied" or "" of every cell."""

    title: str
    frame: pd.DataFrame
    marks: pd.DataFrame
    groups: tuple[tuple[str, ...], ...]  # columns that stay side by side where a sheet is too wide; the first column goes with each


def sheet(title: str, rows: list[dict], groups=None) -> Sheet:
    """Rows of text, or of (text, mark), as a sheet; a column that a row lacks is "no data", one of dashes alone is left out."""
    frame = pd.DataFrame([{k: v[0] if isinstance(v, tuple) else v for k, v in row.items()} for row in rows], dtype=object).fillna("no data")
    marks = pd.DataFrame([{k: v[1] if isinstance(v, tuple) else "" for k, v in row.items()} for row in rows], dtype=object).fillna("")
    kept = [name for name in frame.columns if name == frame.columns[0] or not (frame[name] == "-").all()]
    return Sheet(title, frame[kept], marks[kept], groups(kept[1:]) if groups else tuple((name,) for name in kept[1:]))


def overview(table: TableData) -> pd.DataFrame:
    """The overview as a frame of text."""
    return overview_sheet(table).frame


def overview_sheet(table: TableData) -> Sheet:
    """One row a method: bits, and per data set accuracy, gold log-likelihood and its paired change.

    A method with several seeds shows mean ± sd over them; with one, ΔLL shows half its bootstrap interval.
    """
    out = []
    for method, cells in table.frame.groupby("method", sort=False) if len(table.frame) else ():
        seeds = cells["seed"].nunique()
        row = {"method": method if seeds == 1 else f"{method} ({seeds} seeds)", "bits": _range(cells["bits"])}
        for dataset, column in cells.groupby("dataset", sort=False):
            unit = "EM" if column["scoring"].iloc[0] == "generate" else "acc"
            row[f"{dataset} {unit}"] = mean_sd(column["accuracy"], percent), column["best_accuracy"].iloc[0]
            row[f"{dataset} LL"] = mean_sd(column["loglik"], lambda v: number(v, 2)), column["best_loglik"].iloc[0]
            row[f"{dataset} ΔLL"] = _paired(column)
        out.append(row)
    order = ["method", "bits"] + [name for d in table.facts for name in _columns_of(out, d)]
    return sheet(table.title, [{name: row[name] for name in order if name in row} for row in out], _by_dataset)


def _columns_of(rows: list[dict], dataset: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name.rpartition(" ")[0] == dataset))


def _by_dataset(names: list[str]) -> tuple[tuple[str, ...], ...]:
    """The columns of one data set stay together."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(" ")[0], []).append(name)
    return tuple(map(tuple, groups.values()))


def _closed_by(*ends: str):
    """Groups of columns that end with these names."""
    def groups(names: list[str]) -> tuple[tuple[str, ...], ...]:
        edges = [0, *(i + 1 for i, name in enumerate(names) if name in ends or i == len(names) - 1)]
        return tuple(tuple(names[a:b]) for a, b in pairwise(edges) if a < b)
    return groups


def _paired(column: pd.DataFrame) -> str:
    """The paired change against full precision: ± sd over seeds, or ± half the bootstrap interval of the only one."""
    if len(column) > 1:
        return mean_sd(column["d_loglik"], lambda v: f"{v:+.2f}", " ±", lambda v: f"{v:.2f}")
    cell = column.iloc[0]
    if none(cell["d_loglik"]):
        return "-"
    return f"{cell['d_loglik']:+.2f} ±{(cell['d_loglik_high'] - cell['d_loglik_low']) / 2:.2f}"


def details(table: TableData, dataset: str) -> list[Sheet]:
    """All that is known of one data set, in sheets narrow enough for a terminal."""
    cells = table.frame[table.frame["dataset"] == dataset].to_dict("records")
    names = [cell["method"] if _single(table, cell["method"]) else f"{cell['method']} (seed {cell['seed']})" for cell in cells]
    named = list(zip(names, cells, strict=True))
    out = [sheet(f"{dataset}: answers", [{
        "method": name, "bits": f"{cell['bits']:.3f}", "whole model": f"{cell['model_bits']:.2f}", "n": str(cell["n"]),
        "accuracy [95 %]": (interval(cell, "accuracy", percent), cell["best_accuracy"]),
        "F1": number(cell["f1"], 3), "Δ accuracy [95 %]": interval(cell, "d_accuracy", points), "p": p_value(cell["p"]),
        "lost/gained": _flips(cell, "lost", "gained"), "same answer": percent(cell["agreement"])} for name, cell in named], _closed_by("n", "p"))]
    out.append(sheet(f"{dataset}: likelihood and format", [{
        "method": name, "gold LL": (number(cell["loglik"], 3), cell["best_loglik"]), "ΔLL [95 %]": change(cell), "p LL": p_value(cell["p_loglik"]),
        "KL": number(cell["kl"], 3), "unparsed": percent(cell["parse_fail"]), "cut": percent(cell["truncated"])}
        for name, cell in named], _closed_by("p LL")))
    rivals = [(name, cell) for name, cell in named if not none(cell["u_loglik"])]
    if rivals:
        out.append(sheet(f"{dataset}: against uniform", [{
            "method": name, "bits": f"{cell['bits']:.3f}" + ("" if cell["u_equal_bits"] else f" {UNEQUAL} {cell['u_bits']:.3f}"),
            "Δ accuracy [95 %]": interval(cell, "u_accuracy", points), "lost/gained": _flips(cell, "u_lost", "u_gained"), "p": p_value(cell["u_p"]),
            "LL against uniform [95 %]": interval(cell, "u_loglik", nats), "p LL": p_value(cell["u_p_loglik"])}
            for name, cell in rivals], _closed_by("bits", "p", "p LL")))
    return out + _categories(table, dataset)


def detail(table: TableData, dataset: str) -> pd.DataFrame:
    """All columns of one data set in one wide frame of text."""
    rows, *more = [s.frame for s in details(table, dataset) if s.frame.columns[0] == "method"]
    for frame in more:
        rows = rows.merge(frame.drop(columns="bits", errors="ignore"), on="method", how="left", suffixes=("", " (uniform)"))
    return rows.fillna("-")


def _categories(table: TableData, dataset: str) -> list[Sheet]:
    """Accuracy by category, a column a method; nothing where there is one category."""
    shown = table.frame.loc[table.frame["dataset"] == dataset, ["method", "seed"]]
    found = shown.merge(pd.DataFrame(table.facts[dataset]["strata"]), on=["method", "seed"])  # in the table's order
    if not len(found) or found["category"].nunique() < 2:
        return []
    rows = []
    for category, cells in found.groupby("category"):
        rows.append({"category": category or "(none)", "n": str(cells["n"].iloc[0])}
                    | {method: mean_sd(of["accuracy"], percent) for method, of in cells.groupby("method", sort=False)})
    return [sheet(f"{dataset}: accuracy by category", rows)]


def power_line(table: TableData, dataset: str) -> str:
    """The smallest differences that this data set can show, in words; empty where nothing is compared."""
    found = table.facts[dataset]["power"]
    return f"{dataset}: {detectable_text(found)}" if found else ""


def detectable_text(found: dict) -> str:
    """What Panel.detectable says, in words."""
    accuracy = f"{100 * found['accuracy']:.1f} points of accuracy" if found["accuracy"] is not None else "no difference in accuracy, however large"
    loglik = f"{found['gold_loglik']:.2f} nats a token" if found["gold_loglik"] is not None else "none in log-likelihood"
    return (f"{found['n']} documents can show {accuracy}, {loglik} "
            f"({percent(found['discordant'])} % right in one row only, sd {found['sd']:.2f})")


def family_line(table: TableData, dataset: str) -> str:
    """How many comparisons Holm's correction counts."""
    sizes = table.facts[dataset]["families"]
    return f"{dataset}: Holm over {sizes['fp16']} rows against fp16, {sizes['uniform']} against uniform, {sizes['best']} against the best"


def _single(table: TableData, method: str) -> bool:
    return table.frame.loc[table.frame["method"] == method, "seed"].nunique() == 1


def _range(values) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low}–{high}"


def _flips(cell: dict, lost: str, gained: str) -> str:
    return "-" if none(cell[lost]) else f"{int(cell[lost])}/{int(cell[gained])}"


def change(cell: dict) -> str:
    """The paired change of the gold log-likelihood with its interval."""
    return interval(cell, "d_loglik", nats)


def verdict(table: TableData) -> list[str]:
    """Per data set, the rows of the budget that keep the most, and whether the best can be told from uniform at equal bits."""
    out = []
    for dataset in table.datasets:
        rows = table.frame[table.frame["dataset"] == dataset]
        best, tied = rows[rows["best_loglik"] == "best"], rows.loc[rows["best_loglik"] == "tied", "method"].unique()
        if not len(best):  # one row alone keeps the most of nothing
            continue
        name = best["method"].iloc[0]
        best = best[best["method"] == name]
        against = best["d_loglik"].dropna()
        line = f"{dataset}: {name} keeps the most gold log-likelihood"
        line += f" ({against.mean():+.3f} nats/token against full precision)" if len(against) else ""
        line += _against_uniform(best) + (f"; not told apart from it: {', '.join(tied)}" if len(tied) else "")
        out.append(line + ("; a control wins" if name in ALL_CONTROLS else ""))
    return out


def _against_uniform(cells: pd.DataFrame) -> str:
    """The lead over uniform at equal bits: the interval of a single seed, or every seed's."""
    cells = cells[cells["u_loglik"].notna() & cells["u_equal_bits"].eq(True)]  # None where there is no uniform row
    if not len(cells):
        return ""
    parts = [f"{c['u_loglik']:+.3f} [{c['u_loglik_low']:+.3f}, {c['u_loglik_high']:+.3f}]" for c in cells.to_dict("records")]
    seeds = f" (seeds {', '.join(map(str, cells['seed']))})" if len(cells) > 1 else ""
    return f", {', '.join(parts)} against uniform at equal bits{seeds}"
