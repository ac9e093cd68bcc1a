"""The metrics of one run's samples, each with its interval.

Rates carry Wilson intervals, means carry bootstrap intervals, both 95 %; no data is None.
"""

import numpy as np

from evaluation.statistics.formulas import bootstrap_interval, wilson_interval


def summarise(samples, seed: int = 0) -> dict:
    """Return n and, each as {"value", "low", "high"}, the metrics of a set of samples; None where there is no data."""
    samples = list(samples)
    answered = [s.f1 for s in samples if s.f1 is not None]
    out = {
        "n": len(samples),
        "accuracy": _rate([s.correct for s in samples]),
        "f1": _mean(answered, seed),
        "gold_loglik": _mean([s.gold_loglik for s in samples], seed),
        "parse_fail": _rate([s.answer is None for s in samples]),
        "truncated": _rate([s.truncated for s in samples]),
        "n_prompt": _mean([s.n_prompt for s in samples], seed),
        "n_new": _mean([s.n_new for s in samples], seed),
    }
    return out


def by_stratum(samples) -> dict[str, dict]:
    """Return accuracy and n of each stratum, by name."""
    groups: dict[str, list] = {}
    for s in samples:
        groups.setdefault(s.stratum, []).append(s.correct)
    return {name: {"n": len(values), "accuracy": _rate(values)} for name, values in sorted(groups.items())}


def mean_task_metric(samples) -> tuple[float, float]:
    """Return (score in 0..1, mean gold nats per token); score = (EM + F1)/2 for open questions, else accuracy."""
    samples = list(samples)
    if not samples:
        return float("nan"), float("nan")
    score = np.mean([s.correct if s.f1 is None else (s.correct + s.f1) / 2 for s in samples])
    return float(score), float(np.mean([s.gold_loglik for s in samples]))


def _rate(values) -> dict | None:
    if not values:
        return None
    low, high = wilson_interval(int(sum(values)), len(values))
    return {"value": float(np.mean(values)), "low": low, "high": high}


def _mean(values, seed: int) -> dict | None:
    if not values:
        return None
    low, high = bootstrap_interval(np.asarray(values, dtype=np.float64), np.random.default_rng(seed))
    return {"value": float(np.mean(values)), "low": low, "high": high}
