"""Metrics out of samples.

exact match = max over aliases of [normalise(answer) = normalise(alias)]; F1 = max over aliases of the
harmonic mean of token precision and recall.  ``normalise`` is TriviaQA's (lower case, punctuation to
spaces, no articles, single spaces) and is used for TriviaQA only: it turns the letter "A" into "", and
a harness that compares letters with it pays every model that writes nothing.  Rates carry Wilson
intervals, means carry bootstrap intervals, both 95 %; no data is None.
"""

import re
import string
from collections import Counter

import numpy as np

from evaluation.stats import bootstrap_interval, wilson_interval

_PUNCTUATION = str.maketrans({ch: " " for ch in string.punctuation + "‘’´`"})
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """TriviaQA's official answer normalisation."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str | None, aliases) -> float:
    """1 if the answer equals an alias, else 0; an empty answer is never right, whatever the gold normalises to."""
    if answer is None or not answer.strip():
        return 0.0
    norm = normalise(answer)
    if norm:
        return float(any(norm == normalise(alias) for alias in aliases))
    return float(any(answer.strip().lower() == alias.strip().lower() for alias in aliases))  # e.g. the vitamin "A"


def token_f1(answer: str | None, aliases) -> float:
    """The largest token F1 over the aliases."""
    if answer is None or not answer.strip():
        return 0.0
    mine = Counter(normalise(answer).split())
    if not mine:
        return exact_match(answer, aliases)
    return max((_f1(mine, Counter(normalise(alias).split())) for alias in aliases), default=0.0)


def _f1(a: Counter, b: Counter) -> float:
    same = (a & b).total()
    return 2 * same / (a.total() + b.total()) if same else 0.0


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
