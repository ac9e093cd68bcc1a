"""Intervals and paired tests.

wilson      p in (k + z²/2 ± z sqrt(k(n-k)/n + z²/4)) / (n + z²)
McNemar     exact: b of b + c discordant pairs, two-sided binomial at 1/2
bootstrap   percentile interval of the mean (of paired differences) over seeded resamples of documents
KL          mean over documents of sum_i p_i log(p_i / q_i), nats; p, q = softmax over the options of the
            summed log-probabilities (letter and cloze alike: raw sums, renormalised over the options)
Holm        step-down correction of a family of p-values

No data is NaN (from arrays) or None (in dicts), never 0.
"""

import math

import numpy as np
from scipy.special import log_softmax
from scipy.stats import binomtest, norm

from core.errors import UserError

RESAMPLES = 2000
_CHUNK = 4_000_000  # resampled indices held at once


def wilson_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of k successes in n trials; NaN when n = 0."""
    if n == 0:
        return math.nan, math.nan
    z = float(norm.ppf(0.5 + level / 2))
    half = z * math.sqrt(k * (n - k) / n + z * z / 4)
    centre, scale = k + z * z / 2, n + z * z
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mcnemar(a, b) -> float:
    """Return the two-sided exact p-value that a and b (0/1, paired) have the same rate; 1 without discordant pairs, NaN without pairs."""
    a, b = _paired(a, b)
    if len(a) == 0:
        return math.nan
    only_a, only_b = int(np.sum((a > 0) & (b <= 0))), int(np.sum((b > 0) & (a <= 0)))
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def bootstrap_means(values: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the mean of each resample, float64 [resamples]; in pieces, so memory stays bounded."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return np.full(resamples, np.nan)
    step = max(1, _CHUNK // len(values))
    counts = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate([values[rng.integers(0, len(values), size=(count, len(values)))].mean(axis=1) for count in counts])


def bootstrap_interval(values, rng: np.random.Generator, level: float = 0.95, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the percentile interval of the mean."""
    means = bootstrap_means(values, rng, resamples)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def paired_difference(a, b, rng: np.random.Generator, level: float = 0.95, resamples: int = RESAMPLES) -> dict:
    """Return mean(b - a) with its interval and standard error over documents; None without pairs."""
    a, b = _paired(a, b)
    if len(a) == 0:
        return {"value": None, "low": None, "high": None, "se": None}
    means = bootstrap_means(b - a, rng, resamples)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return {"value": float(np.mean(b - a)), "low": float(low), "high": float(high), "se": float(means.std(ddof=1))}


def flips(a, b) -> dict:
    """Return how many documents went right -> wrong and wrong -> right from a to b, and their share."""
    a, b = _paired(a, b)
    lost, won = int(np.sum((a > 0) & (b <= 0))), int(np.sum((a <= 0) & (b > 0)))
    return {"right_to_wrong": lost, "wrong_to_right": won, "rate": (lost + won) / len(a) if len(a) else None}


def choice_kl(reference, other) -> np.ndarray:
    """Return KL(reference || other) of each document, nats; the arguments are lists of choice log-probabilities."""
    if len(reference) != len(other):
        raise UserError(f"{len(reference)} and {len(other)} documents cannot be compared; they must be the same ones")
    values = np.empty(len(reference))
    for i, (p, q) in enumerate(zip(reference, other, strict=True)):
        if len(p) != len(q):
            raise UserError(f"document {i} has {len(p)} and {len(q)} options; they must be the same ones")
        log_p, log_q = log_softmax(np.asarray(p, dtype=np.float64)), log_softmax(np.asarray(q, dtype=np.float64))
        values[i] = max(0.0, float(np.sum(np.exp(log_p) * (log_p - log_q))))  # rounding may leave -1e-17
    return values


def holm(pvalues) -> list[float]:
    """Return Holm's corrected p-values in the given order; NaN stays NaN and does not count in the family."""
    p = np.asarray(pvalues, dtype=np.float64)
    out = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[i]))
        out[i] = running
    return [float(x) for x in out]


def compare(reference, other, seed: int = 0) -> dict:
    """Compare two runs document by document: differences with intervals, McNemar, flips, KL.

    Documents are paired by id; different sets of documents are an error, not an intersection.
    """
    left, right = {s.doc_id: s for s in reference}, {s.doc_id: s for s in other}
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        raise UserError(f"the runs differ in {len(odd)} documents (first: {odd[0]!r}); compare runs on the same documents")
    pairs = [(s, right[s.doc_id]) for s in left.values()]
    correct = [s.correct for s, _ in pairs], [s.correct for _, s in pairs]
    loglik = [s.gold_loglik for s, _ in pairs], [s.gold_loglik for _, s in pairs]
    rng = np.random.default_rng(seed)
    choices = [(a.choice_logprobs, b.choice_logprobs) for a, b in pairs if a.choice_logprobs and b.choice_logprobs]
    kl = choice_kl([a for a, _ in choices], [b for _, b in choices])
    low, high = bootstrap_interval(kl, rng) if len(kl) else (None, None)
    return {
        "n": len(pairs),
        "accuracy": paired_difference(*correct, rng),
        "gold_loglik": paired_difference(*loglik, rng),
        "mcnemar_p": mcnemar(*correct) if pairs else None,
        "flips": flips(*correct),
        "kl": {"value": float(kl.mean()), "low": low, "high": high} if len(kl) else None,
    }


def _paired(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise UserError(f"{len(a)} and {len(b)} values cannot be paired; pass the same documents in the same order")
    return a, b
