"""Runs compared document by document.

A panel holds the runs of one data set side by side over the same documents.  Its resamples and sign patterns are
drawn once, from the seed and the number of documents alone: an interval does not move when another run joins the
panel, and any two runs, or means over seeds of runs, are compared by a subtraction.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from core.errors import UserError
from core.sample import Sample
from evaluation.statistics.formulas import (
    choice_kl,
    flipped_sums,
    flips,
    holm,
    mcnemar,
    rate_difference_interval,
    resampled_means,
    seeds_and_documents_interval,
    sign_flip_p,
)
from evaluation.statistics.power import detectable_mean, detectable_rate

Runs = int | Sequence[int]  # one run, or those (seeds of one method) whose mean of each document is meant


class Panel:
    """Documents × runs of one data set; differences are second minus first.

    ``values`` holds float64 [n, runs] by metric: "gold_loglik", and "accuracy", "f1", "gold_option" and the task's own
    where every document has one.
    """

    def __init__(self, runs: Sequence[Sequence[Sample]], reference: int | None = None, seed: int = 0):
        self.runs, self.reference, self.seed = aligned(runs), reference, seed
        self.n = len(self.runs[0])
        own = self.runs[0][0].scores if self.n else ()
        values = {name: np.array([[s.metric(name) for s in run] for run in self.runs], dtype=np.float64).T
                  for name in ("accuracy", "gold_loglik", "f1", "gold_option", *own)}
        self.values = {name: of for name, of in values.items() if name == "gold_loglik" or not np.isnan(of).any()}

    @cached_property
    def kl(self) -> np.ndarray | None:
        """KL(reference || run) of each document, [n, runs]; None where there are no options or no reference."""
        if self.reference is None or not self.n or any(not s.choice_logprobs for run in self.runs for s in run):
            return None
        base = [s.choice_logprobs for s in self.runs[self.reference]]
        return np.array([choice_kl(base, [s.choice_logprobs for s in run]) for run in self.runs]).T

    @cached_property
    def _resamples(self) -> dict[str, np.ndarray]:
        """The means of every resample, by metric: [resamples, runs]."""
        values = self.values | ({} if self.kl is None else {"kl": self.kl})
        means = resampled_means(np.hstack(list(values.values())), np.random.default_rng(self.seed))
        return dict(zip(values, np.split(means, len(values), axis=1), strict=True))

    @cached_property
    def _flipped(self) -> dict[str, np.ndarray]:
        """The sums under every sign pattern, by metric: [patterns, runs]."""
        sums = flipped_sums(np.hstack(list(self.values.values())), np.random.default_rng(self.seed))
        return dict(zip(self.values, np.split(sums, len(self.values), axis=1), strict=True))

    def differences(self, metric: str, first: Runs, second: Runs) -> np.ndarray:
        """second - first of each document."""
        return _mean_of(self.values[metric], second) - _mean_of(self.values[metric], first)

    def difference(self, metric: str, first: Runs, second: Runs) -> dict:
        """The mean of second - first with its interval; None without documents.

        In closed form for the accuracy of two runs, else by bootstrap.
        """
        if not self.n:
            return {"value": None, "low": None, "high": None}
        d = self.differences(metric, first, second)
        if metric == "accuracy" and isinstance(first, int) and isinstance(second, int):
            low, high = rate_difference_interval(int(np.sum(d < 0)), int(np.sum(d > 0)), self.n)
            return {"value": float(np.mean(d)), "low": low, "high": high}
        means = _mean_of(self._resamples[metric], second) - _mean_of(self._resamples[metric], first)
        low, high = np.quantile(means, [0.025, 0.975])
        return {"value": float(np.mean(d)), "low": float(low), "high": float(high)}

    def over_seeds(self, metric: str, first: Sequence[int], second: Sequence[int]) -> dict:
        """The mean of second - first, run by run of as many seeds, with an interval that holds seeds and documents."""
        differences = np.column_stack([self.differences(metric, a, b) for a, b in zip(first, second, strict=True)])
        low, high = seeds_and_documents_interval(differences)
        return {"value": float(differences.mean()), "low": low, "high": high}

    def statistic(self, metric: str, of: Callable[[np.ndarray], np.ndarray]) -> dict:
        """A function of the runs' means [..., runs] -> [...] with its bootstrap interval; None without documents.

        All runs share the resamples, so what they have in common cancels, as in :meth:`difference`.
        """
        if not self.n:
            return {"value": None, "low": None, "high": None}
        low, high = np.quantile(of(self._resamples[metric]), [0.025, 0.975])
        return {"value": float(of(self.values[metric].mean(axis=0))), "low": float(low), "high": float(high)}

    def permutation_p(self, metric: str, first: Runs, second: Runs) -> float | None:
        """The paired sign-flip test of the mean difference."""
        if not self.n:
            return None
        return sign_flip_p(self.differences(metric, first, second),
                           lambda: _mean_of(self._flipped[metric], second) - _mean_of(self._flipped[metric], first))

    def mean_kl(self, run: int) -> dict | None:
        """The mean KL(reference || run) with its bootstrap interval."""
        if self.kl is None:
            return None
        low, high = np.quantile(self._resamples["kl"][:, run], [0.025, 0.975])
        return {"value": float(self.kl[:, run].mean()), "low": float(low), "high": float(high)}

    def agreement(self, first: int, second: int) -> float | None:
        """The share of documents in which two runs give the same answer: the same option, or the same text.

        None where there is no right and wrong, and so no answer.
        """
        if "accuracy" not in self.values:
            return None
        pairs = zip(self.runs[first], self.runs[second], strict=True)
        return float(np.mean([a.answer == b.answer for a, b in pairs])) if self.n else None

    def compare(self, first: int, second: int) -> dict:
        """All that can be said of two runs; KL from the reference on, right and wrong where a task has them."""
        right = self.values.get("accuracy")
        pair = None if right is None else (right[:, first], right[:, second])
        return {
            "n": self.n,
            **{name: self.difference(name, first, second) for name in self.values},
            "mcnemar_p": mcnemar(*pair) if pair and self.n else None,
            "permutation_p": self.permutation_p("gold_loglik", first, second),
            "flips": flips(*pair) if pair else None,
            "agreement": self.agreement(first, second),
            "kl": self.mean_kl(second) if first == self.reference else None,
        }

    def detectable(self, pairs: Sequence[tuple[int, int]]) -> dict | None:
        """The smallest differences that this many documents can show, at the median spread of the pairs; None without.

        ``discordant`` and ``accuracy`` are None where the task has no right and wrong.
        """
        if not pairs or self.n < 2:
            return None
        discordant = None
        if "accuracy" in self.values:
            discordant = float(np.median([np.mean(self.differences("accuracy", *pair) != 0) for pair in pairs]))
        spread = float(np.median([np.std(self.differences("gold_loglik", *pair), ddof=1) for pair in pairs]))
        return {"n": self.n, "discordant": discordant, "sd": spread,
                "accuracy": None if discordant is None else detectable_rate(self.n, discordant),
                "gold_loglik": detectable_mean(self.n, spread)}


def compare(reference: Sequence[Sample], other: Sequence[Sample], seed: int = 0) -> dict:
    """Compare two runs document by document: differences with intervals, tests, flips, agreement, KL."""
    return Panel([reference, other], reference=0, seed=seed).compare(0, 1)


def strata(first: Sequence[Sample], second: Sequence[Sample], groups: Mapping[str, str] | None = None) -> list[dict]:
    """Both accuracies, the flips and the exact McNemar test in each category, Holm-corrected over the categories; with
    ``groups`` (category -> group) in each group of them.

    Empty where the task has no right and wrong.
    """
    first, second = aligned([first, second])
    parts: dict[str, list[tuple[float, float]]] = {}
    for a, b in zip(first, second, strict=True):
        if a.correct is None or b.correct is None:
            return []
        name = a.stratum if groups is None else groups.get(a.stratum, "")
        parts.setdefault(name, []).append((a.correct, b.correct))
    rows = []
    for name, pairs in sorted(parts.items()):
        a, b = np.array(pairs).T
        rows.append({"category": name, "n": len(pairs), "first": float(a.mean()), "second": float(b.mean()),
                     **flips(a, b), "p_raw": mcnemar(a, b)})
    return [row | {"p": p} for row, p in zip(rows, holm([row["p_raw"] for row in rows]), strict=True)]


def aligned(runs: Sequence[Sequence[Sample]]) -> list[list[Sample]]:
    """The runs in the first one's order of documents; different sets of documents are an error, not an intersection."""
    order = [s.doc_id for s in runs[0]]
    same_order = []
    for run in runs:
        by_id = {s.doc_id: s for s in run}
        if odd := sorted(by_id.keys() ^ set(order)):
            raise UserError(f"the runs differ in {len(odd)} documents (first: {odd[0]!r}); "
                            "compare runs on the same documents")
        same_order.append([by_id[name] for name in order])
    return same_order


def _mean_of(values: np.ndarray, runs: Runs) -> np.ndarray:
    return values[:, runs] if isinstance(runs, int) else values[:, list(runs)].mean(axis=1)
