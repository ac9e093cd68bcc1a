"""Tables out of results: one frame, several coats.

A table holds the cells that may be compared: same model, same settings, same budget.  fp16, native and
other rows without a budget stand in every table of their model and settings, with their own bits.
Δ columns are paired with full precision, document by document; p values (exact McNemar) are
Holm-corrected over the rows of a table's column.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from core.digest import digest
from core.errors import UserError
from evaluation.stats import compare, holm
from harness.config import CONTROLS
from harness.results import load_results, load_samples

ALL_CONTROLS = (*CONTROLS, "equal", "magnitude")  # scores that see neither task nor data
ROW_ORDER = {name: i for i, name in enumerate(CONTROLS)}


@dataclass(frozen=True)
class TableData:
    """One table: its title, a row a cell, and what must be said below it."""

    title: str
    frame: pd.DataFrame  # columns of COLUMNS, one row a (method, seed, dataset)
    notes: tuple[str, ...]


def tables(folder: Path) -> list[TableData]:
    """Every table that the results folder holds, newest settings first."""
    return group(load_results(folder))


def tables_of(folder: Path, results: list[dict]) -> list[TableData]:
    """The tables of the cells just run, read back from disk."""
    wanted = {r["cell"] for r in results}
    return group(load_results(folder, wanted))


def group(results: list[dict]) -> list[TableData]:
    """Sort cells into the tables in which they may be compared."""
    groups: dict[str, list[dict]] = {}
    for result in results:
        key = digest([result["model"]["revision"], result["model"]["dtype"], result["machine"], result["settings"]])
        groups.setdefault(key, []).append(result)
    out = []
    for members in sorted(groups.values(), key=lambda g: -max(r["modified"] for r in g)):
        budgets = sorted({r["avg_bits"] for r in members if r["avg_bits"] is not None}) or [None]
        out += [one_table([r for r in members if r["avg_bits"] in (bits, None)], bits) for bits in budgets]
    return out


def one_table(members: list[dict], bits: float | None) -> TableData:
    """Compare the cells of one (model, settings, budget)."""
    fine = [r for r in members if r["status"] == "ok"]
    notes = [f"FAILED: {r['method']['name']} on {r['dataset']}: {r['error']}" for r in members if r["status"] != "ok"]
    rows = []
    for dataset in sorted({r["dataset"] for r in fine}, key=_dataset_order):
        column = [r for r in fine if r["dataset"] == dataset]
        newest = max(column, key=lambda r: r["modified"])["stages"]["evaluation"]
        kept = [r for r in column if r["stages"]["evaluation"] == newest]
        if len(kept) < len(column):
            notes.append(f"{dataset}: {len(column) - len(kept)} cells left out, they were asked other documents or in other batches; run them again")
        rows += _column_rows(kept)
        notes += [f"{dataset}: {r['data_note']}" for r in kept[:1] if r["data_note"]]
    head = members[0]
    title = f"{head['model']['name']} ({head['model']['dtype']}), {head['run_type']} run, {head['settings']['data_source']} data"
    title += f", at most {bits:g} stored bits a weight" if bits is not None else ""
    frame = pd.DataFrame(rows)
    if len(frame):
        frame = frame.sort_values(["dataset_order", "order", "method", "seed"], kind="stable").drop(columns=["dataset_order", "order"])
    return TableData(title, frame.reset_index(drop=True), tuple(notes))


def _dataset_order(name: str) -> tuple[int, str]:
    known = ("trivia_qa", "mmlu_pro", "code_mmlu")
    return (known.index(name) if name in known else len(known), name)


def _column_rows(cells: list[dict]) -> list[dict]:
    """Rows of one data set, each compared with its full-precision cell."""
    full, uniform = (next((r for r in cells if r["method"]["name"] == name), None) for name in ("fp16", "uniform"))
    base, even = (load_samples(r) if r else None for r in (full, uniform))
    rows = []
    for cell in cells:
        mine = load_samples(cell)
        row = _row(cell, compare(base, mine) if base and cell is not full else None)
        rival = compare(even, mine)["gold_loglik"] if even and cell not in (full, uniform) else {}
        rows.append(row | {"u_loglik": rival.get("value"), "u_loglik_low": rival.get("low"), "u_loglik_high": rival.get("high")})
    tested = [r for r in rows if r["p"] is not None]
    for row, p in zip(tested, holm([r["p"] for r in tested])):
        row["p"] = p
    return rows


def _row(cell: dict, paired: dict | None) -> dict:
    m, name = cell["metrics"], cell["method"]["name"]

    def part(metric, key):
        return None if m[metric] is None else m[metric][key]

    row = {"dataset": cell["dataset"], "method": name, "seed": cell["seed"],
           "bits": cell["bits"]["average"], "model_bits": cell["bits"]["whole_model"], "n": m["n"],
           "accuracy": part("accuracy", "value"), "accuracy_low": part("accuracy", "low"), "accuracy_high": part("accuracy", "high"),
           "f1": part("f1", "value"), "loglik": part("gold_loglik", "value"), "parse_fail": part("parse_fail", "value"),
           "truncated": part("truncated", "value"), "scoring": cell["scoring"],
           "budgeted": cell["avg_bits"] is not None and not cell["method"]["native"],
           "order": ROW_ORDER.get(name, 20 if cell["method"]["native"] else 10),
           "dataset_order": _dataset_order(cell["dataset"])}
    for metric, short in (("accuracy", "d_accuracy"), ("gold_loglik", "d_loglik")):
        found = paired[metric] if paired else {}
        row |= {short: found.get("value"), f"{short}_low": found.get("low"), f"{short}_high": found.get("high")}
    flips = paired["flips"] if paired else {}
    return row | {"p": paired["mcnemar_p"] if paired else None, "kl": paired["kl"]["value"] if paired and paired["kl"] else None,
                  "lost": flips.get("right_to_wrong"), "gained": flips.get("wrong_to_right")}


def overview(table: TableData) -> pd.DataFrame:
    """One row a method: bits, and per data set accuracy, gold log-likelihood and its paired change, as text."""
    out = []
    for (method, seed), cells in table.frame.groupby(["method", "seed"], sort=False):
        row = {"method": method if _single(table, method) else f"{method} (seed {seed})", "bits": _range(cells["bits"])}
        for cell in cells.to_dict("records"):
            row[f"{cell['dataset']} {'EM' if cell['scoring'] == 'generate' else 'acc'}"] = percent(cell["accuracy"])
            row[f"{cell['dataset']} LL"] = number(cell["loglik"], 2)
            half = None if _none(cell["d_loglik"]) else (cell["d_loglik_high"] - cell["d_loglik_low"]) / 2
            row[f"{cell['dataset']} ΔLL"] = "-" if half is None else f"{cell['d_loglik']:+.2f} ±{half:.2f}"
        out.append(row)
    return pd.DataFrame(out).fillna("no data")


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
        if rows["d_loglik"].notna().sum() < 2:  # one row alone keeps the most of nothing
            continue
        best = rows.loc[rows["d_loglik"].idxmax()]
        line = f"{dataset}: {best['method']} keeps the most gold log-likelihood ({best['d_loglik']:+.3f} nats/token against full precision)"
        if not _none(best["u_loglik"]):
            low, high = best["u_loglik_low"], best["u_loglik_high"]
            line += f", {best['u_loglik']:+.3f} [{low:+.3f}, {high:+.3f}] against uniform at equal bits"
            line += "; the two cannot be told apart" if low <= 0 <= high else ""
        out.append(line + ("; a control wins" if best["method"] in ALL_CONTROLS else ""))
    return out


def require_rows(found: list[TableData], folder: Path) -> list[TableData]:
    """No data is said, never shown as an empty table."""
    if not found:
        raise UserError(f"no data: {str(folder)!r} holds no results; run run_taq_icml.py first or pass --results_dir")
    return found
