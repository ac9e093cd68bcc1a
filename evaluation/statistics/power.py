"""What a number of documents can show: the smallest true difference that a paired test finds with 80 % power at 5 %.

accuracy   exact McNemar.  Of n documents, m ~ Binomial(n, π) answer differently, and of those Binomial(m, (π + δ) / 2π)
           for the better row; power(δ) = Σ_m P(m) · P(the test of m discordant documents rejects).  π is the rate that
           was seen, and at least δ, for a difference cannot be larger than the rate of different answers.
gold LL    mean of paired differences with standard deviation s: δ = s · e / √n, where the two-sided t test of
           noncentrality e has the power; the sign-flip test, which the tables use, finds as much on the number of
           documents that any table has.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.special import bdtr, bdtrik, gammaln, ncfdtr, stdtrit, xlog1py, xlogy

LEVEL, POWER = 0.05, 0.8


def rate_power(n: int, discordant: float, difference: float, level: float = LEVEL) -> float:
    """Return the power of the exact McNemar test at a true difference in rate."""
    rate = min(1.0, max(discordant, difference))
    m, wins = np.arange(n + 1), _critical(n, level)
    log_shares = gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1) + xlogy(m, rate) + xlog1py(n - m, -rate)
    shares = np.exp(log_shares)  # P(m)
    counts = (wins >= 0) & (shares > 1e-18)
    m, wins, shares = m[counts], wins[counts], shares[counts]
    better = (rate + difference) / (2 * rate)
    return float(np.sum(shares * (bdtr(wins, m, 1 - better) + bdtr(wins, m, better))))


@lru_cache(maxsize=64)
def _critical(n: int, level: float) -> np.ndarray:
    """Of m = 0 .. n discordant documents, the most wins of the worse row at which the test rejects; -1: never."""
    m = np.arange(n + 1)
    near = np.floor(bdtrik(level / 2, m, 0.5)).clip(0)  # where P(X <= wins) passes level / 2; NaN at m = 0
    wins = near[:, None] + np.arange(-1, 2)
    rejects = (wins >= 0) & (2 * bdtr(wins.clip(0), m[:, None], 0.5) <= level)
    return np.where(rejects, wins, -1).max(axis=1)


@lru_cache(maxsize=1024)
def detectable_rate(n: int, discordant: float, level: float = LEVEL, power: float = POWER) -> float | None:
    """Return the smallest difference in rate that n documents show; None if they show none, however large."""
    if n < 1 or rate_power(n, discordant, 1.0, level) < power:
        return None
    return _root(lambda difference: rate_power(n, discordant, difference, level) - power, 1e-9, 1.0)


def detectable_mean(n: int, sd: float, level: float = LEVEL, power: float = POWER) -> float | None:
    """Return the smallest mean difference that n paired differences of standard deviation ``sd`` show; None if none.

    The sign patterns of n differences give no p below 2^(1-n), whatever the differences are.
    """
    return sd * _noncentrality(n, level, power) / n**0.5 if 2.0 ** (1 - n) <= level else None


@lru_cache(maxsize=64)
def _noncentrality(n: int, level: float, power: float) -> float:
    edge = -float(stdtrit(n - 1, level / 2))  # T² is noncentral F, whose tail is found where that of T is NaN
    return _root(lambda e: 1 - float(ncfdtr(1, n - 1, e**2, edge**2)) - power, 1e-3, 1.5 * edge + 2.0)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function crosses 0 between ``low``, where it is negative, and ``high``, where it is not.

    Regula falsi that halves the value of an end which stays twice (Dowell and Jarratt 1971, "Illinois").
    """
    at_low, at_high, last = function(low), function(high), 0
    for _ in range(100):  # a dozen do
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = function(middle)
        if abs(value) < 1e-12 or high - low < 1e-12:
            break
        if value < 0:
            low, at_low, at_high, last = middle, value, at_high / 2 if last < 0 else at_high, -1
        else:
            high, at_high, at_low, last = middle, value, at_low / 2 if last > 0 else at_low, 1
    return middle
