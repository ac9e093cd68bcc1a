"""What people read of a table: the overview, a data set's details, the verdict; all as text."""

import pandas as pd

from harness.config import CONTROLS
from harness.tables import TableData

ALL_CONTROLS = (*CONTROLS, "equal", "magnitude", "TaCQ-weight", "rtn")  # scores that see neither task nor data


def overview(table: TableData) -> pd.DataFrame:
    """One row a method: bits, and per data set accuracy, gold log-likelihood and its paired change, as text.

    A method with several seeds shows mean ± sd over them; with one, ΔLL shows half its bootstrap interval.
    """
    out = []
    for method, cells in table.frame.groupby("method", sort=False):
        seeds = cells["seed"].nunique()
        row = {"method": method if seeds == 1 else f"{method} ({seeds} seeds)", "bits": _range(cells["bits"])}
        for dataset, column in cells.groupby("dataset", sort=False):
            unit = "EM" if column["scoring"].iloc[0] == "generate" else "acc"
            row[f"{dataset} {unit}"] = mean_sd(column["accuracy"], percent)
            row[f"{dataset} LL"] = mean_sd(column["loglik"], lambda v: number(v, 2))
            row[f"{dataset} ΔLL"] = _paired(column)
        out.append(row)
    return pd.DataFrame(out).fillna("no data")


def _paired(column: pd.DataFrame) -> str:
    """The paired change against full precision: ± sd over seeds, or ± half the bootstrap interval of the only one."""
    if len(column) > 1:
        return mean_sd(column["d_loglik"], lambda v: f"{v:+.2f}", " ±", lambda v: f"{v:.2f}")
    cell = column.iloc[0]
    if _none(cell["d_loglik"]):
        return "-"
    return f"{cell['d_loglik']:+.2f} ±{(cell['d_loglik_high'] - cell['d_loglik_low']) / 2:.2f}"


def mean_sd(values: pd.Series, show, between: str = " ±", spread=None) -> str:
    """``mean ±sd`` (sample standard deviation) of several seeds, or the one value."""
    values = values.dropna()
    if not len(values):
        return "-"
    return show(values.mean()) + (f"{between}{(spread or show)(values.std(ddof=1))}" if len(values) > 1 else "")


def detail(table: TableData, dataset: str) -> pd.DataFrame:
    """All columns of one data set, as text."""
    out = []
    for cell in table.frame[table.frame["dataset"] == dataset].to_dict("records"):
        name = cell["method"] if _single(table, cell["method"]) else f"{cell['method']} (seed {cell['seed']})"
        out.append({
            "method": name, "bits": f"{cell['bits']:.3f}", "whole model": f"{cell['model_bits']:.2f}", "n": cell["n"],
            "accuracy [95 %]": f"{percent(cell['accuracy'])} [{percent(cell['accuracy_low'])}, {percent(cell['accuracy_high'])}]",
            "F1": number(cell["f1"], 3), "Δ accuracy [95 %]": interval(cell, "d_accuracy", percent), "p": p_value(cell["p"]),
            "gold LL": number(cell["loglik"], 3), "ΔLL [95 %]": change(cell),
            "LL against uniform [95 %]": interval(cell, "u_loglik", lambda v: f"{v:+.3f}"), "KL": number(cell["kl"], 3),
            "lost/gained": "-" if _none(cell["lost"]) else f"{int(cell['lost'])}/{int(cell['gained'])}",
            "unparsed": percent(cell["parse_fail"]), "cut": percent(cell["truncated"])})
    return pd.DataFrame(out)


def _single(table: TableData, method: str) -> bool:
    return table.frame.loc[table.frame["method"] == method, "seed"].nunique() == 1


def _range(values) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low}–{high}"


def _none(value) -> bool:
    return value is None or pd.isna(value)


def percent(value) -> str:
    """A share as percent with one decimal."""
    return "-" if _none(value) else f"{100 * value:.1f}"


def number(value, digits: int) -> str:
    """A number with fixed decimals, or a dash where there is none."""
    return "-" if _none(value) else f"{value:.{digits}f}"


def p_value(value) -> str:
    """A p value, never rounded to zero."""
    return "-" if _none(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def interval(cell: dict, name: str, show) -> str:
    """``value [low, high]`` of a paired difference."""
    return "-" if _none(cell[name]) else f"{show(cell[name])} [{show(cell[f'{name}_low'])}, {show(cell[f'{name}_high'])}]"


def change(cell: dict) -> str:
    """The paired change of the gold log-likelihood with its interval."""
    return interval(cell, "d_loglik", lambda v: f"{v:+.3f}")


def verdict(table: TableData) -> list[str]:
    """Per data set, the row of the budget that keeps the most, and whether it can be told from uniform at equal bits."""
    out = []
    for dataset in table.frame["dataset"].unique() if len(table.frame) else ():
        rows = table.frame[(table.frame["dataset"] == dataset) & table.frame["budgeted"]]
        means = rows.groupby("method")["d_loglik"].mean().dropna()
        if len(means) < 2:  # one row alone keeps the most of nothing
            continue
        best = means.idxmax()
        line = f"{dataset}: {best} keeps the most gold log-likelihood ({means[best]:+.3f} nats/token against full precision)"
        line += _against_uniform(rows[rows["method"] == best])
        out.append(line + ("; a control wins" if best in ALL_CONTROLS else ""))
    return out


def _against_uniform(cells: pd.DataFrame) -> str:
    """The lead over uniform at equal bits: the interval of a single seed, or every seed's."""
    cells = cells.dropna(subset=["u_loglik"])
    if not len(cells):
        return ""
    parts = [f"{c['u_loglik']:+.3f} [{c['u_loglik_low']:+.3f}, {c['u_loglik_high']:+.3f}]" for c in cells.to_dict("records")]
    apart = (cells["u_loglik_low"] > 0).all() or (cells["u_loglik_high"] < 0).all()
    seeds = f" (seeds {', '.join(map(str, cells['seed']))})" if len(cells) > 1 else ""
    return f", {', '.join(parts)} against uniform at equal bits{seeds}" + ("" if apart else "; the two cannot be told apart")
