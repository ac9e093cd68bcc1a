"""Intervals and paired tests.

wilson      p in (k + z²/2 ± z sqrt(k(n-k)/n + z²/4)) / (n + z²)
two rates   paired, of b and c discordant pairs in n: with half a pair added to each of the four cells,
            d = (c-b) / (n+2) ± z s, s² = (b + c + 1 - (c-b)² / (n+2)) / (n+2)² (Agresti and Min 2005); the bootstrap
            has no width where nothing flips, and covers far less than it says where little does
McNemar     exact: p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2); on 0/1 values the sign flip is this test
sign flip   paired permutation: p = share of sign patterns of the differences d whose |Σ ±d| reaches |Σ d|; all 2^m
            patterns of m non-zero differences if they are no more than FLIPS, else FLIPS seeded ones and
            (hits + 1) / (FLIPS + 1)
bootstrap   percentile interval of the mean (of paired differences) over seeded resamples of documents
seeds       of S runs over the same documents: the mean of their mean differences, ± √(t² s²/S over seeds + z² s²/n over
            documents), t of S − 1 degrees
equivalence two one-sided t tests (TOST) of paired differences: p = max P(T ≤ −(m ± d̄) / s), m the margin stated before
KL          mean over documents of sum_i p_i log(p_i / q_i), nats; p, q = softmax over the options of the
            summed log-probabilities (letter and cloze alike: raw sums, renormalised over the options)
Holm        step-down correction of a family of p-values

The resamples and sign patterns are linear in the values, so values of several runs share them and any two runs are
compared by a subtraction (evaluation/statistics/paired.py).  scipy.stats is not imported: it takes half a second.

No data is NaN (from arrays) or None (in dicts), never 0.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import bdtr, log_softmax, ndtri, stdtr, stdtrit

from core.errors import UserError

RESAMPLES = 2000
FLIPS = 9999  # so that (hits + 1) / (FLIPS + 1) is a round number
_CHUNK = 4_000_000  # resampled indices or signs held at once


def wilson_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of k successes in n trials; NaN when n = 0."""
    if n == 0:
        return math.nan, math.nan
    z = float(ndtri(0.5 + level / 2))
    half = z * math.sqrt(k * (n - k) / n + z * z / 4)
    centre, scale = k + z * z / 2, n + z * z
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def rate_difference_interval(lost: int, won: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the paired difference of two rates; NaN when n = 0."""
    if n == 0:
        return math.nan, math.nan
    z, centre = float(ndtri(0.5 + level / 2)), (won - lost) / (n + 2)
    half = z * math.sqrt(lost + won + 1 - (won - lost) ** 2 / (n + 2)) / (n + 2)
    return max(-1.0, centre - half), min(1.0, centre + half)


def mcnemar(a, b) -> float:
    """Return the exact two-sided p-value that a and b (0/1, paired) have one rate; 1 if all agree, NaN without any."""
    a, b = _paired(a, b)
    if len(a) == 0:
        return math.nan
    only_a, only_b = int(np.sum((a > 0) & (b <= 0))), int(np.sum((b > 0) & (a <= 0)))
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def bootstrap_means(values: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the mean of each resample, float64 [resamples]; in parts, so memory stays bounded."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return np.full(resamples, np.nan)
    step = max(1, _CHUNK // len(values))
    counts = [min(step, resamples - start) for start in range(0, resamples, step)]
    drawn = (values[rng.integers(0, len(values), size=(count, len(values)))] for count in counts)
    return np.concatenate([rows.mean(axis=1) for rows in drawn])


def bootstrap_interval(values, rng: np.random.Generator, level: float = 0.95,
                       resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the percentile interval of the mean."""
    means = bootstrap_means(values, rng, resamples)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def resampled_means(values: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the column means of each resample of the rows of ``values`` [n, k], float64 [resamples, k].

    The draws are those of ``bootstrap_means``.
    """
    n, means = len(values), []
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(0, n, size=(count, n)) + n * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        means.append(weights.astype(np.float64) @ values / n)
    return np.concatenate(means)


def flipped_sums(values: np.ndarray, rng: np.random.Generator, count: int = FLIPS) -> np.ndarray:
    """Return the column sums of ``values`` [n, k] under random sign patterns of its rows, float64 [count, k]."""
    n, sums = len(values), []
    step = max(1, _CHUNK // n)
    for start in range(0, count, step):
        rows = min(step, count - start)
        bits = np.unpackbits(np.frombuffer(rng.bytes(rows * -(-n // 8)), np.uint8).reshape(rows, -1), axis=1, count=n)
        sums.append(bits.astype(np.float64) @ (2 * values))
    return np.concatenate(sums) - values.sum(axis=0)


def sign_flip_p(differences, sums: Callable[[], np.ndarray]) -> float:
    """Return the two-sided p-value that paired differences are symmetric around 0; NaN without any, or if one is NaN.

    ``sums`` gives the sums of the differences under random sign patterns; it is asked only where all patterns are too
    many to go through.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) == 0 or not np.isfinite(d).all():
        return math.nan
    nonzero = d[d != 0]
    close = abs(d.sum()) - 1e-12 * (np.abs(d).sum() + 1)  # equal sums count, whatever order they were added in
    if len(nonzero) < FLIPS.bit_length():  # 2^m patterns are no more than FLIPS
        signs = 1.0 - 2.0 * (np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero)) & 1)
        return float(np.mean(np.abs(signs @ nonzero) >= close))
    drawn = np.abs(sums())
    return float((np.sum(drawn >= close) + 1) / (len(drawn) + 1))


def seeds_and_documents_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean of paired differences [documents, seeds], of two seeds or more.

    Half its width: √(t² s_seeds² / S + z² s_documents² / n), with s_seeds the deviation of the seeds' means and t of
    S − 1 degrees, s_documents that of the documents' means.  Seeds share their documents, so neither holds the other.
    """
    n, seeds = differences.shape
    by_seed, by_document = differences.mean(axis=0), differences.mean(axis=1)
    tail = 0.5 + level / 2
    wide = stdtrit(seeds - 1, tail) ** 2 * by_seed.var(ddof=1) / seeds
    wide += ndtri(tail) ** 2 * by_document.var(ddof=1) / n
    return float(differences.mean() - math.sqrt(wide)), float(differences.mean() + math.sqrt(wide))


def equivalence_p(differences, margin: float) -> float:
    """Return the p-value of two one-sided t tests that the mean of paired differences lies within ± ``margin``.

    Below 5 %: shown to be equivalent; above, nothing is shown.  NaN without two differences.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return math.nan
    error = d.std(ddof=1) / math.sqrt(len(d))
    if error == 0:
        return 0.0 if abs(d.mean()) < margin else 1.0
    above, below = ((d.mean() + margin) / error, (margin - d.mean()) / error)
    return float(max(stdtr(len(d) - 1, -above), stdtr(len(d) - 1, -below)))


def mean_sd(values) -> tuple[float, float | None]:
    """Return mean and sample standard deviation over seeds; no deviation of a single value, NaN without any."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return math.nan, None
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def flips(a, b) -> dict:
    """Return how many documents went right -> wrong and wrong -> right from a to b, and their share."""
    a, b = _paired(a, b)
    lost, won = int(np.sum((a > 0) & (b <= 0))), int(np.sum((a <= 0) & (b > 0)))
    return {"right_to_wrong": lost, "wrong_to_right": won, "rate": (lost + won) / len(a) if len(a) else None}


def choice_kl(reference, other) -> np.ndarray:
    """Return KL(reference || other) of each document, nats; the arguments are lists of choice log-probabilities."""
    if len(reference) != len(other):
        raise UserError(f"{len(reference)} and {len(other)} documents cannot be compared; they must be the same ones")
    for i, (p, q) in enumerate(zip(reference, other, strict=True)):
        if len(p) != len(q):
            raise UserError(f"document {i} has {len(p)} and {len(q)} options; they must be the same ones")
    if not len(reference):
        return np.empty(0)
    log_p, log_q = _log_shares(reference), _log_shares(other)
    there = np.isfinite(log_p)  # p log p = 0 where there is no option
    gap = np.subtract(log_p, log_q, out=np.zeros_like(log_p), where=there)
    return np.maximum(0.0, np.sum(np.exp(log_p) * gap, axis=1))  # rounding may leave -1e-17


def _log_shares(choices) -> np.ndarray:
    """Log-probabilities over each document's own options, [n, most options]; -inf where a document has fewer."""
    most = max(map(len, choices))
    return log_softmax(np.array([(*values, *[-np.inf] * (most - len(values))) for values in choices]), axis=1)


def holm(pvalues) -> list[float]:
    """Return Holm's corrected p-values in the given order; NaN stays NaN and does not count in the family."""
    p = np.asarray(pvalues, dtype=np.float64)
    corrected = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = running
    return [float(value) for value in corrected]


def _paired(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise UserError(f"{len(a)} and {len(b)} values cannot be paired; pass the same documents in the same order")
    return a, b
