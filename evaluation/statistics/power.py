"""What a number of documents can show: the smallest true difference that a paired test finds with 80 % power at 5 %, two-sided.

accuracy   exact McNemar.  Of n documents, m ~ Binomial(n, π) answer differently, and of those Binomial(m, (π + δ) / 2π) for the
           better row; power(δ) = Σ_m P(m) · P(the test of m discordant documents rejects).  π is the rate that was seen, and at
           least δ, for a difference cannot be larger than the rate of different answers.
gold LL    mean of paired differences with standard deviation s: δ = s · e / √n, where the two-sided t test of noncentrality e has
           the power; the sign-flip test, which the tables use, finds as much on the number of documents that any table has.
"""

from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, ncf, t

LEVEL, POWER = 0.05, 0.8


def rate_power(n: int, discordant: float, difference: float, level: float = LEVEL) -> float:
    """Return the power of the exact McNemar test at a true difference in rate."""
    rate = min(1.0, max(discordant, difference))
    m = np.arange(n + 1)
    share = (rate + difference) / (2 * rate)
    reject = _critical(n, level)  # most wins of the worse row at which m discordant documents reject; -1: never
    found = binom.cdf(reject, m, 1 - share) + binom.cdf(reject, m, share)
    return float(np.sum(binom.pmf(m, n, rate) * found))


@lru_cache(maxsize=64)
def _critical(n: int, level: float) -> np.ndarray:
    m = np.arange(n + 1)
    k = binom.ppf(level / 2, m, 0.5)
    return np.where(2 * binom.cdf(k, m, 0.5) <= level, k, k - 1)


@lru_cache(maxsize=1024)
def detectable_rate(n: int, discordant: float, level: float = LEVEL, power: float = POWER) -> float | None:
    """Return the smallest difference in rate that n documents show; None if they show none, however large."""
    if n < 1 or rate_power(n, discordant, 1.0, level) < power:
        return None
    return float(brentq(lambda d: rate_power(n, discordant, d, level) - power, 1e-9, 1.0, xtol=1e-7))


def detectable_mean(n: int, sd: float, level: float = LEVEL, power: float = POWER) -> float | None:
    """Return the smallest mean difference that n paired differences of standard deviation ``sd`` show; None if they show none.

    The sign patterns of n differences give no p below 2^(1-n), whatever the differences are.
    """
    return sd * _noncentrality(n, level, power) / n**0.5 if 2.0 ** (1 - n) <= level else None


@lru_cache(maxsize=64)
def _noncentrality(n: int, level: float, power: float) -> float:
    edge = float(t.isf(level / 2, n - 1))  # T² is noncentral F, whose tail scipy finds where that of noncentral t is NaN
    return float(brentq(lambda e: float(ncf.sf(edge**2, 1, n - 1, e**2)) - power, 1e-3, 1.5 * edge + 2.0))
