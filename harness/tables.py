"""Tables out of results: one frame, several coats.

A table holds the cells that may be compared: same model, same settings, same budget.  fp16, native and
other rows without a budget stand in every table of their model and settings, with their own bits.
Δ columns are paired with full precision, document by document; p values (exact McNemar) are
Holm-corrected over the rows of a table's column.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from core.digest import digest
from core.errors import UserError
from evaluation.stats import compare, holm
from harness.config import CONTROLS
from harness.results import load_results, load_samples

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
    """The tables of the cells just run, read back from disk; not those of the same cells under other settings."""
    asked = {digest(json.loads(json.dumps(r["settings"]))) for r in results}
    return group([r for r in load_results(folder, {r["cell"] for r in results}) if digest(r["settings"]) in asked])


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
        if len({r["seed"] for r in kept if (r.get("solver_calibration") or {}).get("whole_pool")}) > 1:
            notes.append(f"{dataset}: --calib_tokens took every calibration document, so all seeds read the same ones; their sd says little")
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
    full = next((r for r in cells if r["method"]["name"] == "fp16"), None)
    even = {r["seed"]: load_samples(r) for r in cells if r["method"]["name"] == "uniform"}
    base, rows = load_samples(full) if full else None, []
    for cell in cells:
        mine, control = load_samples(cell), cell["method"]["name"] in ("fp16", "uniform")
        row = _row(cell, compare(base, mine) if base and cell is not full else None)
        against = even.get(cell["seed"], next(iter(even.values()), None))  # uniform calibrated by the same seed, where there is one
        rival = compare(against, mine)["gold_loglik"] if against and not control else {}
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


def require_rows(found: list[TableData], folder: Path) -> list[TableData]:
    """No data is said, never shown as an empty table."""
    if not found:
        raise UserError(f"no data: {str(folder)!r} holds no results; run run_taq_icml.py first or pass --results_dir")
    return found
