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
from report.tables.pair import find_pair, fits

METRIC = "gold_loglik"


def leads(results: Sequence[Result], names: Sequence[str]) -> list[dict]:
    """Gold log-likelihood of both rows and the second's lead, nats a token: a line a data set and seed, and one with
    seed None for a data set's seeds together, if there are several.  The rows may differ in stored bits, which stand in
    every line (means over the seeds).

    Raises UserError where no data set has two seeds of both rows, or names mean several rows.
    """
    lines = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        pairs = _pairs([result for result in results if result.dataset == dataset and result.ok], names)
        if pairs:
            lines += _lines(dataset, pairs)
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


def _lines(dataset: str, pairs: Sequence[tuple[Result, Result]]) -> list[dict]:
    count = len(pairs)
    panel = Panel([load_samples(one) for side in zip(*pairs) for one in side])
    bits = {f"{which}_bits": sum(one.bits.average for one in side) / count
            for which, side in zip(("first", "second"), zip(*pairs))}
    means = panel.values[METRIC].mean(axis=0)
    lines = [{"dataset": dataset, "seed": first.seed, "seeds": 1, "n": panel.n, "first": float(means[i]),
              "second": float(means[count + i]), **panel.difference(METRIC, i, count + i),
              "p": panel.permutation_p(METRIC, i, count + i)} | bits for i, (first, _) in enumerate(pairs)]
    if count > 1:
        sides = list(range(count)), list(range(count, 2 * count))
        lines.append({"dataset": dataset, "seed": None, "seeds": count, "n": panel.n,
                      "first": float(means[:count].mean()), "second": float(means[count:].mean()),
                      **panel.over_seeds(METRIC, *sides), "p": panel.permutation_p(METRIC, *sides)} | bits)
    return lines
