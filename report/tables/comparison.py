"""One data set of a table: its rows, their tests against full precision and uniform, and the best of them.

Families of Holm's correction: all rows tested against full precision; the rows at equal bits tested against uniform;
all pairs of methods at the budget, of which those with the best one are shown (which is best comes out of the same
documents, so testing the others against it alone would tell equal methods apart too often).  Accuracy and gold
log-likelihood are families of their own.
A row whose stored bits differ from uniform's by more than the grid's tolerance shows its difference, but no p value,
and a note gives both bits; it is never ranked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations

from core.sample import Sample, Stratum
from evaluation.statistics.formulas import holm
from evaluation.statistics.paired import Panel
from report.records import Result, load_samples
from report.schema import equal_bits
from report.strata import groups_of
from report.tables.conditioning import conditioning

LEVEL = 0.05
P_VALUES = ("p", "p_loglik", "u_p", "u_p_loglik")  # Holm-corrected; <name>_raw is the test's own
# what a metric is called in a row; see stem()
STEMS = {"accuracy": "accuracy", "gold_loglik": "loglik", "f1": "f1", "gold_option": "option"}


def falling(metric: str) -> bool:
    """Whether less of a metric is better: perplexities, bits a byte, errors."""
    return metric.endswith(("perplexity", "bits_per_byte", "error"))


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


def stem(metric: str) -> str:
    """The name of a metric's value in a row.

    Its interval is ``<stem>_low`` to ``<stem>_high``, its paired change against full precision ``d_<stem>``, its lead
    over uniform ``u_<stem>``.
    """
    return STEMS.get(metric, f"task_{metric}")


def compare_dataset(cells: Sequence[Result], documents: Documents) -> tuple[list[dict], dict, list[str]]:
    """Return a row a cell, facts (documents, metrics, chance, power, families, categories), and what must be said."""
    full = next((i for i, cell in enumerate(cells) if cell.name == "fp16"), None)
    panel = Panel([documents.of(cell) for cell in cells], reference=full)
    rivals = _rivals(cells)
    even = [rival is not None and equal_bits(cell.bits.average, cells[rival].bits.average, cell.tolerance)
            for cell, rival in zip(cells, rivals, strict=True)]
    rows = []
    for i, (cell, rival, same) in enumerate(zip(cells, rivals, even, strict=True)):
        change = panel.compare(full, i) if full not in (None, i) else None
        lead = panel.compare(rival, i) if rival is not None else None
        rows.append(_own(cell) | _option(panel, i) | _against_full(change, cell) | _against_uniform(lead, cell, same))
        rows[-1]["u_bits"] = None if rival is None else cells[rival].bits.average
    for name in P_VALUES:
        p_values = holm([float("nan") if row[f"{name}_raw"] is None else row[f"{name}_raw"] for row in rows])
        for row, p in zip(rows, p_values, strict=True):
            row[name] = None if p != p else p
    pairs = [(rival, i) for i, rival in enumerate(rivals) if even[i]]
    compared = max(sum(row[name] is not None for row in rows) for name in ("p", "p_loglik"))
    families = {"fp16": compared, "uniform": len(pairs), "best": mark_best(panel, cells, rows)}
    power = panel.detectable(pairs or [(full, i) for i in range(len(cells)) if full not in (None, i)])
    facts = {"n": panel.n, "metrics": cells[0].task.metrics, "chance": _chance(cells, panel), "power": power,
             "chance_option": _chance_option(panel), "over_seeds": over_seeds(panel, cells, rivals, even),
             "families": families, "strata": _strata(cells, lambda cell: cell.strata),
             "groups": _strata(cells, groups_of), "conditioning": conditioning(panel, cells)}
    return rows, facts, _notes(cells, rivals, even)


def _rivals(cells: Sequence[Result]) -> list[int | None]:
    """For each row the place of uniform, of the same seed where there is one; None for uniform and full precision."""
    uniform = {cell.seed: i for i, cell in enumerate(cells) if cell.name == "uniform"}
    first = next(iter(uniform.values()), None)
    return [None if cell.name in ("fp16", "uniform") else uniform.get(cell.seed, first) for cell in cells]


def mark_best(panel: Panel, cells: Sequence[Result], rows: list[dict]) -> int:
    """Mark the best budgeted method of the main metric and of the log-likelihood, and those not told apart from it.

    A method's seeds are averaged document by document, and the averages compared by the sign-flip test.
    Returns the number of the best one's rivals.
    """
    ranked = dict.fromkeys([*list(cells[0].task.metrics)[:1], "gold_loglik"])
    groups: dict[str, list[int]] = {}
    for i, (cell, row) in enumerate(zip(cells, rows, strict=True)):
        row |= {f"best_{stem(metric)}": "" for metric in ("accuracy", *ranked)}
        if row["budgeted"] and equal_bits(row["bits"], cell.avg_bits, cell.tolerance):
            groups.setdefault(cell.name, []).append(i)
    if len(groups) < 2 or not panel.n:  # one row alone is the best of nothing
        return 0
    for metric in (metric for metric in ranked if metric in panel.values):
        for method, mark in _marks(panel, metric, groups).items():
            for i in groups[method]:
                rows[i][f"best_{stem(metric)}"] = mark
    return len(groups) - 1


def _marks(panel: Panel, metric: str, groups: dict[str, list[int]]) -> dict[str, str]:
    """"best" or "tied" by method, of those that are."""
    means = {method: panel.values[metric][:, runs].mean() for method, runs in groups.items()}
    best = max(means, key=lambda method: means[method])
    pairs = list(combinations(groups, 2))
    corrected = holm([panel.permutation_p(metric, groups[first], groups[second]) for first, second in pairs])
    tied = {first if second == best else second: "tied" for (first, second), p in zip(pairs, corrected, strict=True)
            if best in (first, second) and p >= LEVEL}
    return tied | {method: "best" for method in groups if means[method] == means[best]}


def _own(cell: Result) -> dict:
    """What a row says of itself."""
    row = {"dataset": cell.dataset, "method": cell.name, "seed": cell.seed, "cell": cell.cell,
           "bits": cell.bits.average, "activations": cell.activations.words, "model_bits": cell.bits.whole_model,
           "quantizer": cell.method.quantizer,
           "group_size": cell.bits.group_size, "n": cell.n}
    for metric in dict.fromkeys(["accuracy", "f1", "gold_loglik", *cell.task.metrics]):
        interval = cell.metrics.get(metric)
        row |= _interval(stem(metric), asdict(interval) if interval else None)
    for name in ("parse_fail", "truncated"):
        row[name] = cell.metrics[name].value if cell.metrics.get(name) else None
    at_budget = not cell.method.native or cell.method.options.get("target") is not None
    return row | {"scoring": cell.scoring, "budgeted": cell.avg_bits is not None and at_budget}


def _against_full(change: dict | None, cell: Result) -> dict:
    """The paired change from full precision."""
    return _paired("d", change, cell) | _interval("kl", change and change["kl"]) | {
        "p_raw": change and change["mcnemar_p"], "p_loglik_raw": change and change["permutation_p"],
        "agreement": change and change["agreement"], **_flips("", change)}


def _against_uniform(lead: dict | None, cell: Result, even: bool) -> dict:
    """The paired lead over uniform; p values at equal bits only."""
    tested = lead if even else None
    return _paired("u", lead, cell) | {
        "u_equal_bits": lead and even, "u_p_raw": tested and tested["mcnemar_p"],
        "u_p_loglik_raw": tested and tested["permutation_p"], **_flips("u_", lead)}


def _paired(prefix: str, paired: dict | None, cell: Result) -> dict:
    """The differences of every metric that the table shows."""
    row = {}
    for metric in dict.fromkeys(["accuracy", "gold_loglik", "gold_option", *cell.task.metrics]):
        row |= _interval(f"{prefix}_{stem(metric)}", paired and paired.get(metric))
    return row


def _flips(prefix: str, paired: dict | None) -> dict:
    flips = (paired and paired["flips"]) or {}
    return {f"{prefix}lost": flips.get("right_to_wrong"), f"{prefix}gained": flips.get("wrong_to_right")}


def _interval(name: str, interval: dict | None) -> dict:
    interval = interval or {}
    return {name: interval.get("value"), f"{name}_low": interval.get("low"), f"{name}_high": interval.get("high")}


def _chance(cells: Sequence[Result], panel: Panel) -> float | None:
    """The accuracy of a guess; of results that do not state it, from the options that were scored."""
    stated = [cell.task.chance for cell in cells if cell.task.chance is not None]
    if stated or cells[0].task.kind != "choice":
        return stated[0] if stated else None
    options = [len(s.choice_logprobs) for s in panel.runs[0] if s.choice_logprobs]
    return sum(1 / n for n in options) / len(options) if options and len(options) == panel.n else None


def _option(panel: Panel, run: int) -> dict:
    """The gold option's log-probability among the options."""
    told = "gold_option" in panel.values
    return _interval("option", panel.statistic("gold_option", lambda means: means[..., run]) if told else None)


def _chance_option(panel: Panel) -> float | None:
    """What a guess gives the gold option, nats: −log of the number of options, on average."""
    if "gold_option" not in panel.values or not panel.n:
        return None
    return -sum(math.log(len(sample.choice_logprobs)) for sample in panel.runs[0]) / panel.n


def over_seeds(panel: Panel, cells: Sequence[Result], rivals: list[int | None], even: list[bool]) -> list[dict]:
    """Of each method with several seeds at uniform's bits: its lead over uniform of the same seed in gold
    log-likelihood, with an interval that holds seeds and documents.
    """
    runs: dict[str, list[int]] = {}
    for i, (cell, same) in enumerate(zip(cells, even, strict=True)):
        if same and cells[rivals[i]].seed == cell.seed:
            runs.setdefault(cell.name, []).append(i)
    return [{"method": name, "seeds": len(own)}
            | panel.over_seeds("gold_loglik", [rivals[i] for i in own], own)
            for name, own in runs.items() if len(own) > 1 and panel.n > 1]


def _strata(cells: Sequence[Result], of: Callable[[Result], dict[str, Stratum]]) -> list[dict]:
    """Of every cell, its strata or its groups of them."""
    return [{"method": cell.name, "seed": cell.seed, "category": category, "n": stratum.n,
             "accuracy": stratum.accuracy and stratum.accuracy.value}
            for cell in cells for category, stratum in of(cell).items()]


def _notes(cells: Sequence[Result], rivals: list[int | None], even: list[bool]) -> list[str]:
    """Which rows are not at uniform's bits."""
    unequal = {cell.name: f"{cell.name} {cell.bits.average:.3f}"
               for cell, rival, same in zip(cells, rivals, even, strict=True) if rival is not None and not same}
    if not unequal:
        return []
    uniform = next(cell for cell in cells if cell.name == "uniform")
    return [f"{cells[0].dataset}: uniform stores {uniform.bits.average:.3f} bits, {', '.join(unequal.values())}: "
            "not at equal bits, so not ranked and without p against uniform"]
