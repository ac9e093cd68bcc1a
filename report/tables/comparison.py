"""One data set of a table: its rows, their tests against full precision and uniform, and the rows that cannot be told from the best.

Families of Holm's correction: all rows tested against full precision; the rows at equal bits tested against uniform;
the budgeted methods tested against the best one.  Accuracy and gold log-likelihood are families of their own.
A row whose stored bits differ from uniform's by more than the grid's tolerance shows its difference, but no p value,
and a note gives both bits; it is never ranked.
"""

import pandas as pd

from core.registry import CONTROLS
from core.sample import Sample
from evaluation.statistics.formulas import holm
from evaluation.statistics.paired import Panel
from evaluation.statistics.summary import by_stratum
from report.records import Result, load_samples

ROW_ORDER = {name: i for i, name in enumerate(CONTROLS)}
DATASET_ORDER = ("trivia_qa", "mmlu_pro", "code_mmlu")
LEVEL = 0.05
P_VALUES = ("p", "p_loglik", "u_p", "u_p_loglik")  # Holm-corrected; <name>_raw is the test's own
RANKED = {"accuracy": "accuracy", "loglik": "gold_loglik"}


class Documents:
    """The per-document lines of results, each file read and checked once: fp16 stands in the tables of every budget."""

    def __init__(self):
        self._read: dict[tuple, list[Sample]] = {}

    def of(self, result: Result) -> list[Sample]:
        """The samples of a result."""
        key = result.file, result.samples_digest
        if key not in self._read:
            self._read[key] = load_samples(result)
        return self._read[key]


def equal_bits(a: float, b: float, tolerance: float) -> bool:
    """Whether two rows may be compared without a word about their bits; the allowance is for rounding in the last digit only."""
    return abs(a - b) <= tolerance + 1e-9


def dataset_order(name: str) -> tuple[int, str]:
    """The brief's data sets first, others by name."""
    return (DATASET_ORDER.index(name) if name in DATASET_ORDER else len(DATASET_ORDER), name)


def column(cells: list[Result], documents: Documents) -> tuple[list[dict], dict, list[str]]:
    """Return the rows of one data set, its facts (documents, families, power), and the notes on bits that differ."""
    names = [cell.name for cell in cells]
    full = names.index("fp16") if "fp16" in names else None
    panel = Panel([documents.of(cell) for cell in cells], reference=full)
    even = {cell.seed: i for i, cell in enumerate(cells) if names[i] == "uniform"}
    rows, pairs, unequal = [], [], {}
    for i, cell in enumerate(cells):
        row = _own(cell) | _against_full(panel.compare(full, i) if full not in (None, i) else None)
        rival = even.get(cell.seed, next(iter(even.values()), None)) if names[i] not in ("fp16", "uniform") else None
        same = rival is not None and equal_bits(row["bits"], cells[rival].bits.average, cell.tolerance)
        rows.append(row | _against_uniform(panel, rival, i, cells, same))
        if same:
            pairs.append((rival, i))
        elif rival is not None:
            unequal[names[i]] = f"{names[i]} {row['bits']:.3f}"
    for name in P_VALUES:
        for row, p in zip(rows, holm([float("nan") if r[f"{name}_raw"] is None else r[f"{name}_raw"] for r in rows]), strict=True):
            row[name] = None if pd.isna(p) else p
    family = mark_best(panel, cells, rows)
    power = panel.detectable(pairs or [(full, i) for i in range(len(cells)) if full not in (None, i)])
    facts = {"n": panel.n, "power": power, "families": {"fp16": sum(r["p"] is not None for r in rows), "uniform": len(pairs), "best": family},
             "strata": [{"method": name, "seed": cell.seed, "category": category, "n": found.n, "accuracy": found.accuracy and found.accuracy.value}
                        for name, cell in zip(names, cells, strict=True) for category, found in by_stratum(documents.of(cell)).items()]}
    if not unequal:
        return rows, facts, []
    return rows, facts, [f"{cells[0].dataset}: uniform stores {cells[next(iter(even.values()))].bits.average:.3f} bits, "
                         f"{', '.join(unequal.values())}: not at equal bits, so not ranked and without p against uniform"]


def mark_best(panel: Panel, cells: list[Result], rows: list[dict]) -> int:
    """Mark the best budgeted method of each metric and those that cannot be told from it; returns the size of the family.

    A method's seeds are averaged document by document, and the averages compared by the sign-flip test.
    """
    groups: dict[str, list[int]] = {}
    for i, (cell, row) in enumerate(zip(cells, rows, strict=True)):
        row |= {f"best_{name}": "" for name in RANKED}
        if row["budgeted"] and equal_bits(row["bits"], cell.avg_bits, cell.tolerance):
            groups.setdefault(row["method"], []).append(i)
    if len(groups) < 2 or not panel.n:  # one row alone is the best of nothing
        return 0
    for short, metric in RANKED.items():
        means = {method: panel.values[metric][:, runs].mean() for method, runs in groups.items()}
        best = max(means, key=lambda method: means[method])
        others = [method for method in groups if method != best]
        corrected = holm([panel.permutation_p(metric, groups[best], groups[method]) for method in others])
        marks = {method: "tied" for method, p in zip(others, corrected, strict=True) if p >= LEVEL}
        marks |= {method: "best" for method in groups if means[method] == means[best]}
        for method, mark in marks.items():
            for i in groups[method]:
                rows[i][f"best_{short}"] = mark
    return len(groups) - 1


def _own(cell: Result) -> dict:
    """What a row says of itself."""
    m, name = cell.metrics, cell.name

    def part(metric, key):
        return None if m.get(metric) is None else getattr(m[metric], key)

    return {"dataset": cell.dataset, "method": name, "seed": cell.seed, "cell": cell.cell,
            "bits": cell.bits.average, "model_bits": cell.bits.whole_model, "n": cell.n,
            "accuracy": part("accuracy", "value"), "accuracy_low": part("accuracy", "low"), "accuracy_high": part("accuracy", "high"),
            "f1": part("f1", "value"), "loglik": part("gold_loglik", "value"), "loglik_low": part("gold_loglik", "low"),
            "loglik_high": part("gold_loglik", "high"), "parse_fail": part("parse_fail", "value"),
            "truncated": part("truncated", "value"), "scoring": cell.scoring,
            "budgeted": cell.avg_bits is not None and not cell.method.native,
            "order": ROW_ORDER.get(name, 20 if cell.method.native else 10),
            "dataset_order": dataset_order(cell.dataset)}


def _against_full(paired: dict | None) -> dict:
    """The paired change from full precision."""
    row = {}
    for metric, short in (("accuracy", "d_accuracy"), ("gold_loglik", "d_loglik")):
        row |= _interval(short, paired[metric] if paired else {})
    flips, kl = (paired["flips"], paired["kl"] or {}) if paired else ({}, {})
    return row | {"p_raw": paired["mcnemar_p"] if paired else None, "p_loglik_raw": paired["permutation_p"] if paired else None,
                  "kl": kl.get("value"), "kl_low": kl.get("low"), "kl_high": kl.get("high"), "agreement": paired["agreement"] if paired else None,
                  "lost": flips.get("right_to_wrong"), "gained": flips.get("wrong_to_right")}


def _against_uniform(panel: Panel, rival: int | None, i: int, cells: list[Result], same: bool) -> dict:
    """The paired lead over uniform calibrated by the same seed, where there is one; p values at equal bits only."""
    paired = panel.compare(rival, i) if rival is not None else None
    row = {"u_bits": cells[rival].bits.average if paired else None, "u_equal_bits": same if paired else None}
    for metric, short in (("accuracy", "u_accuracy"), ("gold_loglik", "u_loglik")):
        row |= _interval(short, paired[metric] if paired else {})
    return row | {"u_p_raw": paired["mcnemar_p"] if paired and same else None, "u_p_loglik_raw": paired["permutation_p"] if paired and same else None,
                  "u_lost": paired["flips"]["right_to_wrong"] if paired else None, "u_gained": paired["flips"]["wrong_to_right"] if paired else None}


def _interval(short: str, found: dict) -> dict:
    return {short: found.get("value"), f"{short}_low": found.get("low"), f"{short}_high": found.get("high")}
