"""Allocators of the common table: scores and a budget in, bits per linear out.  They decide, nothing else.

``uniform``    lowest level everywhere, then linears raised one level at a time in a fixed, score-blind order.
``knapsack``   per linear, the level that minimises Σ s·‖W − Q_b(W)‖² (or Σ of level-aware losses) under the budget.
``topk_keep``  the highest uniform level that fits, the rest of the budget spent on 16-bit weights or columns.

Ties are broken by the spread order (bit-reversed position), never by "the earliest wins", which would
protect the first blocks whenever a scorer is blind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from core.errors import BudgetError, UserError
from core.lazy import torch
from core.registry import allocator
from core.types import Budget, LayerPlan, Scores
from quantization.allocators.knapsack import solve
from quantization.bits import achievable, csr_bits, kept_bits, layer_bits, uniform_bits, whole_bytes

FLOOR = 1e-3  # a score below this share of the largest counts as it: a zero must not make a linear free to ruin


@dataclass
class AllocContext:
    """What an allocator may read."""

    shapes: dict[str, tuple[int, int]]  # fqn -> [out, in]
    block_of: dict[str, int]
    budget: Budget
    scores: Scores | None = None
    distortion: Callable[[], dict[str, list[float]]] | None = None  # -> fqn -> ‖W − Q_b(W)‖² at each budget level
    options: dict = field(default_factory=dict)


def spread_order(count: int) -> list[int]:
    """0..count-1 by bit-reversed value: every prefix is spread evenly over the range."""
    width = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda i: int(f"{i:0{width}b}"[::-1], 2))


def require_achievable(ctx: AllocContext) -> None:
    """Raise with the achievable range when even the lowest level exceeds the budget, or the highest misses it."""
    low, high = achievable(ctx.shapes, ctx.budget)
    if not low <= ctx.budget.avg_bits < high + ctx.budget.tolerance:
        raise BudgetError(f"{ctx.budget.avg_bits} bits a weight cannot be met with levels {ctx.budget.levels} in groups of "
                          f"{ctx.budget.group_size}; achievable here: {low:.4f} to {high:.4f} (--avg_bits)")


@allocator("uniform")
def uniform(ctx: AllocContext):
    """The score-blind control at the shared budget."""
    require_achievable(ctx)
    levels, names = sorted(ctx.budget.levels), list(ctx.shapes)
    cost = {(n, b): layer_bits(_grid_plan(b, ctx.budget), ctx.shapes[n]) for n in names for b in levels}
    left = _total_bits(ctx) - sum(cost[n, levels[0]] for n in names)
    at = dict.fromkeys(names, 0)
    for step in range(len(levels) - 1):
        for index in spread_order(len(names)):
            name = names[index]
            price = cost[name, levels[step + 1]] - cost[name, levels[step]]
            if price <= left:
                at[name], left = step + 1, left - price
        if min(at.values()) == step:  # this pass could not raise everything: the budget is met
            break
    return {n: _grid_plan(levels[at[n]], ctx.budget) for n in names}, {}


@allocator("knapsack")
def knapsack(ctx: AllocContext):
    """Multiple-choice knapsack over levels; exact or with a proven gap (see quantization/allocators/knapsack.py)."""
    require_achievable(ctx)
    levels, names = sorted(ctx.budget.levels), list(ctx.shapes)
    cost = np.array([[layer_bits(_grid_plan(b, ctx.budget), ctx.shapes[n]) for b in levels] for n in names], dtype=np.int64)
    if ctx.scores.levels is not None:
        if tuple(ctx.scores.levels) != tuple(levels):
            raise UserError(f"the scores hold losses at levels {ctx.scores.levels}, the budget's are {tuple(levels)}; score with --levels alike")
        loss = np.array([_total(ctx.scores.values[n], len(levels)) for n in names])
    else:
        table = ctx.distortion()
        loss = positive_weights(ctx.scores, names)[:, None] * np.array([table[n] for n in names])
    slack = int(ctx.budget.tolerance * sum(r * c for r, c in ctx.shapes.values()))
    choice, gap = solve(loss, cost, _total_bits(ctx), slack)
    return {n: _grid_plan(levels[c], ctx.budget) for n, c in zip(names, choice)}, {"optimality_gap": gap}


def _total(value: torch.Tensor, levels: int) -> np.ndarray:
    """Sum losses of finer granularity over a linear: [levels]."""
    return value.double().reshape(-1, levels).sum(0).numpy()


def positive_weights(scores: Scores, names: list[str]) -> np.ndarray:
    """One positive weight a linear: exp(z) of standardised scores, else the mean score, floored at FLOOR of the largest."""
    raw = np.array([float(scores.values[n].double().mean()) for n in names])
    if not np.isfinite(raw).all():
        bad = names[int(np.flatnonzero(~np.isfinite(raw))[0])]
        raise UserError(f"the score of {bad} is not finite; a scorer must give finite numbers")
    if scores.unit == "z":
        return np.exp(raw)
    if (raw < 0).any():
        raise UserError(f"scores in {scores.unit!r} are negative at {names[int(raw.argmin())]}; only unit 'z' may be signed")
    return np.maximum(raw, FLOOR * raw.max()) if raw.max() > 0 else np.ones_like(raw)


@allocator("topk_keep")
def topk_keep(ctx: AllocContext):
    """Global top-k of element or channel scores kept at 16 bits over the highest uniform level that fits."""
    require_achievable(ctx)
    names, total = list(ctx.shapes), _total_bits(ctx)
    base = max(b for b in ctx.budget.levels if b < 16 and uniform_bits(b, ctx.shapes, ctx.budget) <= total)
    spare = total - uniform_bits(base, ctx.shapes, ctx.budget)
    channel = ctx.scores.granularity == "channel"
    flat = torch.cat([ctx.scores.values[n].float().flatten() for n in names])
    sizes = [ctx.scores.values[n].numel() for n in names]
    rows = torch.tensor([ctx.shapes[n][0] if channel else 1 for n in names])
    # an upper bound on how many fit: their 16-bit values alone would fill what is left
    most = min(len(flat), spare // 16 if not channel else int(spare // (16 * int(rows.min()))))
    order = first_k(flat, most)
    layer_id = torch.bucketize(order, torch.tensor(np.cumsum(sizes)), right=True).numpy()
    low, high = 0, len(order)
    while low < high:  # the most kept weights whose values and index fit; cost grows with k
        mid = (low + high + 1) // 2
        low, high = (mid, high) if _keep_cost(ctx, names, order[:mid], layer_id[:mid], sizes) <= spare else (low, mid - 1)
    masks = masks_of(ctx, names, order[:low], sizes)
    layers = {n: LayerPlan(base, ctx.budget.group_size, ctx.budget.scale_bits, keep=masks.get(n)) for n in names}
    return layers, {"kept": low, "kept_share": float(sum(m.sum() for m in masks.values()) / sum(r * c for r, c in ctx.shapes.values()))}


def first_k(flat: torch.Tensor, k: int) -> torch.Tensor:
    """Positions of the k highest scores, best first; equal scores by position in the model."""
    if k == 0:
        return torch.zeros(0, dtype=torch.long)
    at = flat.numel() - k
    threshold = float(np.partition(flat.numpy(), at)[at])  # torch.topk on a CPU takes 16 bytes a value, four times as many
    found = torch.nonzero(flat >= threshold).flatten()
    return found[torch.sort(flat[found], descending=True, stable=True).indices][:k]


def _keep_cost(ctx, names, order, layer_id, sizes) -> int:
    """Bits of values and indices of a prefix of the ranking; per linear the cheaper of CSR and bitmap."""
    if ctx.scores.granularity == "channel":
        return sum(kept_bits(m) for m in masks_of(ctx, names, order, sizes).values())
    starts = np.concatenate([[0], np.cumsum(sizes)])
    local = order.numpy() - starts[layer_id]
    total = 0
    for index in np.unique(layer_id):
        rows, cols = ctx.shapes[names[index]]
        counts = np.bincount(local[layer_id == index] // cols, minlength=rows)
        total += 16 * int(counts.sum()) + min(whole_bytes(rows * cols), csr_bits(counts, cols))
    return total


def masks_of(ctx, names, order, sizes) -> dict[str, np.ndarray]:
    """Boolean [out, in] masks of the kept positions, for the linears that keep any."""
    flags = torch.zeros(sum(sizes), dtype=torch.bool)
    flags[order] = True
    masks = {}
    for name, part in zip(names, flags.split(sizes)):
        if part.any():
            shape = ctx.shapes[name]
            masks[name] = (part.expand(shape) if ctx.scores.granularity == "channel" else part.reshape(shape)).numpy().copy()
    return masks


def _grid_plan(bits: int, budget: Budget) -> LayerPlan:
    return LayerPlan(bits, budget.group_size, budget.scale_bits)


def _total_bits(ctx: AllocContext) -> int:
    return int(ctx.budget.avg_bits * sum(r * c for r, c in ctx.shapes.values()) + 1e-6)

