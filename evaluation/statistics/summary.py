"""The metrics of one run's samples, each with its interval.

Rates carry Wilson intervals, means carry bootstrap intervals, both 95 %; no data is None.
"""

import numpy as np

from core.sample import Interval, Sample, Stratum
from evaluation.statistics.formulas import bootstrap_interval, wilson_interval


def summarise(samples, seed: int = 0) -> dict[str, Interval | None]:
    """The metrics of a set of samples by name, the task's own after the common ones; None where there is no data."""
    samples = list(samples)
    intervals = {
        "accuracy": _rate([s.correct for s in samples if s.correct is not None]),
        "f1": _mean([s.f1 for s in samples if s.f1 is not None], seed),
        "gold_loglik": _mean([s.gold_loglik for s in samples], seed),
        "parse_fail": _rate([s.answer is None for s in samples]),
        "truncated": _rate([s.truncated for s in samples]),
        "n_prompt": _mean([s.n_prompt for s in samples], seed),
        "n_new": _mean([s.n_new for s in samples], seed),
    }
    for name in dict.fromkeys(name for s in samples for name in s.scores):
        values = [s.scores[name] for s in samples if name in s.scores]
        intervals[name] = _rate(values) if set(values) <= {0.0, 1.0} else _mean(values, seed)
    return intervals


def by_stratum(samples) -> dict[str, Stratum]:
    """Accuracy and size of each stratum, by name."""
    groups: dict[str, list] = {}
    for s in samples:
        groups.setdefault(s.stratum, []).append(s.correct)
    return {name: Stratum(len(values), _rate([value for value in values if value is not None]))
            for name, values in sorted(groups.items())}


def mean_task_metric(samples) -> tuple[float, float]:
    """Return (score in 0..1, mean gold nats per token); score = (EM + F1)/2 for open questions, else accuracy.

    A task without right and wrong is scored by the mean of its own metrics.
    """
    samples = list(samples)
    if not samples:
        return float("nan"), float("nan")
    return float(np.mean([_score(s) for s in samples])), float(np.mean([s.gold_loglik for s in samples]))


def _score(sample: Sample) -> float:
    values = [value for value in (sample.correct, sample.f1) if value is not None] or list(sample.scores.values())
    return sum(values) / len(values) if values else float("nan")


def _rate(values) -> Interval | None:
    if not values:
        return None
    return Interval(float(np.mean(values)), *wilson_interval(int(sum(values)), len(values)))


def _mean(values, seed: int) -> Interval | None:
    if not values:
        return None
    values, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    return Interval(float(np.mean(values)), *bootstrap_interval(values, rng))
