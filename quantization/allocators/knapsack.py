"""Multiple-choice knapsack: one level an item, minimise Σ loss, Σ cost within (capacity − slack, capacity].

Small problems go to scipy's HiGHS (exact to a relative gap of 1e-6 or the reported one, with a node
limit instead of a clock so that the answer does not depend on the machine's speed); large ones to a
Lagrangian: the lower convex hull of every item, hull steps taken by loss saved per bit, leftover bits
filled with any improving step that fits.  The fractional optimum of the hull bounds the gap.
"""

from itertools import pairwise

import numpy as np

SMALL = 8192  # binaries up to which HiGHS is asked
NODES = 2000


def solve(loss: np.ndarray, cost: np.ndarray, capacity: int, slack: int) -> tuple[np.ndarray, float]:
    """Return (level index of each item [n], relative gap to a proven lower bound).

    loss: float64 [n, levels]; cost: int64 [n, levels], ascending along levels.
    """
    choice, bound = lagrangian(loss, cost, capacity)
    if loss.size <= SMALL:
        exact, lower = _highs(loss, cost, capacity, slack=slack)
        if exact is not None:
            bound = max(bound, lower)
            used = _sum(cost, choice)
            if used <= capacity - slack or _sum(loss, exact) < _sum(loss, choice):
                choice = exact
    value = float(_sum(loss, choice))
    return choice, max(0.0, (value - bound) / value) if value > 0 else 0.0


def _sum(table: np.ndarray, choice: np.ndarray):
    return table[np.arange(len(choice)), choice].sum()


def lagrangian(loss: np.ndarray, cost: np.ndarray, capacity: int) -> tuple[np.ndarray, float]:
    """Greedy on convex hulls, then filling; returns (choice, lower bound on the loss of any feasible choice)."""
    choice = np.zeros(len(loss), dtype=np.int64)
    steps = []
    for item in range(len(loss)):
        hull = _hull(cost[item], loss[item])
        choice[item] = hull[0]
        for a, b in pairwise(hull):
            saved, price = loss[item, a] - loss[item, b], int(cost[item, b] - cost[item, a])
            steps.append((-saved / price, price, item, b, saved))
    left = capacity - int(_sum(cost, choice))
    bound, room = float(_sum(loss, choice)), left
    skipped: set[int] = set()
    for _, price, item, level, saved in sorted(steps):
        if room > 0:  # the fractional optimum: the last step is taken in part
            bound -= saved * min(1.0, room / price)
            room -= price
        if item in skipped:
            continue  # hull steps of one item must be taken in order
        if price <= left:
            choice[item], left = level, left - price
        else:
            skipped.add(item)
    return _fill(loss, cost, choice, left=left), bound


def _hull(cost: np.ndarray, loss: np.ndarray) -> list[int]:
    """Levels on the lower convex hull of (cost, loss), from the cheapest up to the least loss."""
    hull: list[int] = []
    for level in np.lexsort((loss, cost)):
        if hull and loss[level] >= loss[hull[-1]]:
            continue
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (loss[a] - loss[b]) * (cost[level] - cost[a]) <= (loss[a] - loss[level]) * (cost[b] - cost[a]):
                hull.pop()
            else:
                break
        hull.append(int(level))
    return hull


def _fill(loss, cost, choice, left) -> np.ndarray:
    """Spend what is left, each time on the affordable step that does not lose and saves the most loss a bit."""
    while True:
        price = cost - cost[np.arange(len(choice)), choice][:, None]
        saved = loss[np.arange(len(choice)), choice][:, None] - loss
        fits = (price > 0) & (price <= left) & (saved >= 0)
        if not fits.any():
            return choice
        rate = np.where(fits, saved / np.maximum(price, 1), -1.0)
        item, level = np.unravel_index(int(rate.argmax()), rate.shape)
        left -= int(price[item, level])
        choice[item] = level


def _highs(loss, cost, capacity, slack):
    """Ask HiGHS; returns (choice, dual bound) or (None, -inf) when it found nothing within its nodes."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    n, levels = loss.shape
    scale = float(loss.max()) or 1.0
    unit = float(cost.max())  # HiGHS works to 1e-6: bits are scaled so that the budget row is of order n
    pick = csr_array((np.ones(n * levels), (np.repeat(np.arange(n), levels), np.arange(n * levels))))
    rows = vstack([pick, csr_array(cost.reshape(1, -1) / unit)])
    low = np.append(np.ones(n), (capacity - slack + 1) / unit)
    high = np.append(np.ones(n), capacity / unit)
    result = milp(loss.ravel() / scale, constraints=LinearConstraint(rows, low, high), bounds=Bounds(0, 1),
                  integrality=np.ones(n * levels), options={"mip_rel_gap": 1e-6, "node_limit": NODES})
    if result.x is None:
        return None, -np.inf
    choice = result.x.reshape(n, levels).argmax(1)
    if not capacity - slack < _sum(cost, choice) <= capacity:  # within HiGHS's tolerance but not within ours
        return None, -np.inf
    return choice, float(result.mip_dual_bound) * scale
