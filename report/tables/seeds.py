"""Two rows over all the seeds that both have, data set by data set: what a claim about rows rests on.

Cells of equal seed are compared document by document; then the seeds together, with an interval that holds seeds and
documents, and the paired sign-flip test of the documents' means, corrected by Holm over the data sets.
"""

import math
from collections.abc import Sequence

from core.errors import UserError
from evaluation.statistics.formulas import holm
from evaluation.statistics.paired import Panel
from report.records import Result, load_samples
from report.tables.pair import find_pair, fits, full_precision

METRIC = "gold_loglik"
KL = "kl"


def leads(results: Sequence[Result], names: Sequence[str], metric: str = METRIC) -> list[dict]:
    """A metric of both rows and how much higher it is in the second: a line a data set and seed, and one with seed None
    for a data set's seeds together, if there are several.  The rows may differ in stored bits, which stand in every
    line (means over the seeds).

    metric: one that every document has (evaluation/statistics/paired.py), or "kl", the divergence of the options'
    probabilities from full precision's.  Raises UserError where no data set has two seeds of both rows, names mean
    several rows, or documents lack the metric.
    """
    lines = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        cells = [result for result in results if result.dataset == dataset and result.ok]
        if pairs := _pairs(cells, names):
            lines += _lines(dataset, pairs, metric, full_precision(cells, pairs[0][0]) if metric == KL else None)
    together = [line for line in lines if line["seed"] is None]
    if not together:
        raise UserError(f"--over_seeds finds no data set in which {names[0]!r} and {names[1]!r} share two seeds; run "
                        "both with --seeds 0 1 2")
    for line, p in zip(together, holm([math.nan if line["p"] is None else line["p"] for line in together])):
        line["p_holm"] = None if p != p else p
    return lines


def _pairs(results: Sequence[Result], names: Sequence[str]) -> list[tuple[Result, Result]]:
    """The cells of equal seed, in the order of seeds."""
    seeds = [{result.seed for result in results if fits(result, name)} for name in names]
    return [find_pair([result for result in results if result.seed == seed], names)
            for seed in sorted(seeds[0] & seeds[1])]


def _lines(dataset: str, pairs: Sequence[tuple[Result, Result]], metric: str, full: Result | None) -> list[dict]:
    count = len(pairs)
    runs = [load_samples(one) for side in zip(*pairs) for one in side]
    panel = Panel(runs + ([load_samples(full)] if full else []), reference=len(runs) if full else None)
    if panel.kl is not None:
        panel.values[KL] = panel.kl
    if metric not in panel.values:
        lacking = " (no options, or no result of full precision)" if metric == KL else ""
        raise UserError(f"--metric {metric!r} is none that documents of {dataset} have{lacking}; use one of: "
                        f"{', '.join(panel.values)}, or leave the data set out (--dataset)")
    bits = {f"{which}_bits": sum(one.bits.average for one in side) / count
            for which, side in zip(("first", "second"), zip(*pairs))}
    same, means = {"dataset": dataset, "metric": metric, "n": panel.n} | bits, panel.values[metric].mean(axis=0)
    lines = [same | {"seed": first.seed, "seeds": 1, "first": float(means[i]), "second": float(means[count + i]),
                     "p": panel.permutation_p(metric, i, count + i)} | panel.difference(metric, i, count + i)
             for i, (first, _) in enumerate(pairs)]
    if count > 1:
        sides = list(range(count)), list(range(count, 2 * count))
        first, second = (float(means[side].mean()) for side in sides)
        lines.append(same | {"seed": None, "seeds": count, "first": first, "second": second,
                             "p": panel.permutation_p(metric, *sides)} | panel.over_seeds(metric, *sides))
    return lines
