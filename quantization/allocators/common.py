"""Allocators of the common table: scores and a budget in, bits per linear out.  They decide, nothing else.

``uniform``    lowest level everywhere, then linears raised one level at a time in a fixed, score-blind order.
``knapsack``   per linear, the level that minimises Σ s·‖W − Q_b(W)‖² (or Σ of level-aware losses) under the budget.
``topk_keep``  the highest uniform level that fits, the rest of the budget spent on 16-bit weights or columns.

Where an order decides between equals it is the spread order (quantization/allocators/ranking.py), never the earliest
first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from core.errors import BudgetError, UserError
from core.lazy import torch
from core.registry import allocator
from core.settings import Setting
from core.types import Budget, Scores
from quantization.allocators.knapsack import solve
from quantization.allocators.ranking import BelowBest, drawn_order, first_k, keep_masks, most
from quantization.bits import (
    KEPT_BITS,
    achievable,
    bits_within,
    grid_plan,
    kept_bits,
    layer_bits,
    single_index_bits,
    uniform_bits,
    values_bits,
    weights_of,
)

if TYPE_CHECKING:
    from core.architecture import Attention, Mlp
    from quantization.allocators.menu import Menu

MAPPING = Setting("mapping", str, "scores", "how scores weigh a linear's errors: scores (exp of standardised ones), "
                  "ranks (exp of the normal score of their rank), relative (as scores, errors as shares of the "
                  "weights' own size)", choices=("scores", "ranks", "relative"), flag=False)
TIE = Setting("tie", str, "none", "linears that get the same bits: none, or fused (q, k and v of a block, and gate and "
              "up), as engines that fuse them want it", choices=("none", "fused"), flag=False)
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # what vLLM makes one linear of
FLOOR = 1e-3  # a score below this share of the largest counts as it: a zero must not make a linear free to ruin


@dataclass
class AllocContext:
    """What an allocator may read."""

    shapes: dict[str, tuple[int, int]]  # fqn -> [out, in]
    block_of: dict[str, int]
    budget: Budget
    scores: Scores | None = None
    distortion: Callable[[], dict[str, list[float]]] | None = None  # -> fqn -> ‖W − Q_b(W)‖² at each budget level
    energy: Callable[[], dict[str, float]] | None = None  # -> fqn -> ‖W‖²
    attention: Callable[[], list[Attention]] | None = None  # of each block; UserError where heads cannot be told apart
    mlps: Callable[[], list[Mlp]] | None = None  # of each block; UserError where neurons cannot be told apart
    options: dict = field(default_factory=dict)
    draw: int = 0  # of a shuffled control (core/shuffle.py)
    menu: Callable[[], Menu] | None = None  # forms of every linear, solved and priced

    @property
    def total_bits(self) -> int:
        """The bits that may be stored."""
        return bits_within(self.shapes, self.budget.avg_bits)


def require_achievable(ctx: AllocContext) -> None:
    """Raise with the achievable range when even the lowest level exceeds the budget, or the highest misses it."""
    low, high = achievable(ctx.shapes, ctx.budget)
    if not low <= ctx.budget.avg_bits < high + ctx.budget.tolerance:
        raise BudgetError(f"{ctx.budget.avg_bits} bits a weight cannot be met with levels {ctx.budget.levels} in "
                          f"groups of {ctx.budget.group_size}; achievable here: {low:.4f} to {high:.4f} (--avg_bits)")


@allocator("uniform", options=(TIE,))
def uniform(ctx: AllocContext):
    """The score-blind control at the shared budget."""
    require_achievable(ctx)
    levels, together = sorted(ctx.budget.levels), tied(ctx.shapes, TIE.of(ctx.options))
    cost = [{names[0]: sum(layer_bits(grid_plan(b, ctx.budget), ctx.shapes[n]) for n in names) for names in together}
            for b in levels]
    at = raised([names[0] for names in together], cost, ctx.total_bits, draw=ctx.draw)
    of = {n: at[names[0]] for names in together for n in names}
    return {n: grid_plan(levels[of[n]], ctx.budget) for n in ctx.shapes}, {}


def tied(shapes, how: str) -> list[list[str]]:
    """The linears, those that get the same bits together, in order of the first of each."""
    if how == "none":
        return [[name] for name in shapes]
    kinds = {last: kind for kind in FUSED for last in kind}
    together: dict[tuple, list[str]] = {}
    for name in shapes:
        parent, _, last = name.rpartition(".")
        together.setdefault((parent, kinds.get(last, last)), []).append(name)
    return list(together.values())


def raised(names, cost: list[dict[str, int]], total: int, draw: int = 0) -> dict[str, int]:
    """The level of every linear: all from the lowest on one level higher at a time, in spread order or that of a draw,
    while bits last.

    cost: stored bits of every linear, level by level.
    """
    names, at = list(names), dict.fromkeys(names, 0)
    left = total - sum(cost[0].values())
    for step in range(len(cost) - 1):
        for index in drawn_order(len(names), draw):
            name = names[index]
            price = cost[step + 1][name] - cost[step][name]
            if price <= left:
                at[name], left = step + 1, left - price
        if min(at.values()) == step:  # this pass could not raise everything: the budget is met
            break
    return at


@allocator("knapsack", options=(MAPPING, TIE))
def knapsack(ctx: AllocContext):
    """Multiple-choice knapsack over levels; exact or with a proven gap (see quantization/allocators/knapsack.py)."""
    require_achievable(ctx)
    levels, names, budget = sorted(ctx.budget.levels), list(ctx.shapes), ctx.budget
    cost = np.array([[layer_bits(grid_plan(b, budget), ctx.shapes[n]) for b in levels] for n in names], dtype=np.int64)
    if ctx.scores.levels is not None:
        if tuple(ctx.scores.levels) != tuple(levels):
            raise UserError(f"the scores hold losses at levels {ctx.scores.levels}, the budget's are {tuple(levels)}; "
                            "score with --levels alike")
        loss = np.array([_total(ctx.scores.values[n], len(levels)) for n in names])
    else:
        table, mapping = ctx.distortion(), MAPPING.of(ctx.options)
        loss = positive_weights(ctx.scores, names, ranks=mapping == "ranks")[:, None]
        loss = loss * np.array([table[n] for n in names])
        if mapping == "relative":
            sizes = ctx.energy()
            loss = loss / np.maximum([sizes[n] for n in names], 1e-30)[:, None]
    slack = int(budget.tolerance * weights_of(ctx.shapes))
    together = tied(ctx.shapes, TIE.of(ctx.options))
    row = {name: index for index, name in enumerate(names)}
    joint = [np.stack([of[[row[name] for name in one]].sum(0) for one in together]) for of in (loss, cost)]
    choice, gap = solve(*joint, ctx.total_bits, slack=slack)
    level = {name: levels[c] for one, c in zip(together, choice, strict=True) for name in one}
    return {n: grid_plan(level[n], budget) for n in names}, {"optimality_gap": gap}


def _total(value: torch.Tensor, levels: int) -> np.ndarray:
    """Sum losses of finer granularity over a linear: [levels]."""
    return value.double().reshape(-1, levels).sum(0).numpy()


def positive_weights(scores: Scores, names: list[str], ranks: bool = False) -> np.ndarray:
    """One positive weight a linear: exp(z) of standardised scores, else the mean, at least FLOOR of the largest.

    ranks: exp of the normal score of the rank instead, Φ⁻¹((r − ½) / n); equal scores share their mean rank.
    """
    raw = np.array([float(scores.values[n].double().mean()) for n in names])
    if not np.isfinite(raw).all():
        bad = names[int(np.flatnonzero(~np.isfinite(raw))[0])]
        raise UserError(f"the score of {bad} is not finite; a scorer must give finite numbers")
    if ranks:
        from scipy.special import ndtri  # importing allocators stays light
        from scipy.stats import rankdata

        return np.exp(ndtri((rankdata(raw) - 0.5) / len(raw)))
    if scores.unit == "z":
        return np.exp(raw)
    if (raw < 0).any():
        raise UserError(f"scores in {scores.unit!r} are negative at {names[int(raw.argmin())]}; only unit 'z' may be "
                        "signed")
    return np.maximum(raw, FLOOR * raw.max()) if raw.max() > 0 else np.ones_like(raw)


@allocator("topk_keep", 2, keeps=True, ranks=True)
def topk_keep(ctx: AllocContext):
    """Global top-k of weights, columns or rows kept at 16 bits over the highest uniform level that fits.

    Equal scores are taken in spread order, so a blind scorer keeps weights all over the model.
    """
    require_achievable(ctx)
    total = ctx.total_bits
    base = max(b for b in ctx.budget.levels if b < 16 and uniform_bits(b, ctx.shapes, ctx.budget) <= total)
    masks, notes = keep_within(ctx, total - uniform_bits(base, ctx.shapes, ctx.budget), ctx.budget.kept_bits)
    return {name: replace(grid_plan(base, ctx.budget), keep=masks.get(name)) for name in ctx.shapes}, notes


def keep_within(ctx: AllocContext, spare: int, bits: int) -> tuple[dict[str, np.ndarray], dict]:
    """Masks of the best weights, columns or rows of the model whose values, of ``bits`` each, and index take at most
    ``spare`` bits; and how many they are.
    """
    scores, granularity = InOrder(ctx), ctx.scores.granularity
    if granularity not in ("element", "channel", "line"):
        raise UserError("what is kept at more bits is single weights, columns or rows; combine this allocation with a "
                        f"scorer of these, such as TaCQ; this row's scores: {granularity}")
    single, lines = granularity == "element", ctx.shapes if granularity == "line" else ()
    rows = {name for name in lines if ctx.scores.values[name].shape[1] == 1}
    whole = ["row" if name in rows else "column" for name in ctx.shapes]
    sizes = [math.prod(shape) for shape in ctx.shapes.values()] if single else [len(one) for one in scores]
    cost = _KeepCost(list(ctx.shapes.values()), sizes, bits, None if single else whole)
    # an upper bound on how many fit: their values alone would fill what is left
    bound, few = min(sum(cost.sizes), spare // (bits * cost.weights_a_score)), None
    try:
        order = first_k(scores, bound)
    except BelowBest as error:  # those that are stored may be all that fit
        order, few = first_k(scores, error.stored), error
    cost.rank(order.numpy())
    # the most scores whose weights and index fit; cost grows with their number
    kept = most(len(order), lambda count: cost.of_first(count) <= spare)
    if few and kept == len(order):
        raise few
    masks = keep_masks(ctx.shapes, order[:kept], cost.sizes, rows)
    return masks, {"kept": kept, "kept_share": float(sum(m.sum() for m in masks.values()) / weights_of(ctx.shapes))}


@dataclass(frozen=True)
class InOrder:
    """The scores of the linears one after another, float32 [n] each, made while they are looked at."""

    ctx: AllocContext

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.ctx.scores.values[name].float().flatten() for name in self.ctx.shapes)


@dataclass
class _KeepCost:
    """Bits of values and their index for the best so many scores of elements, columns or rows."""

    shapes: list[tuple[int, int]]
    sizes: list[int]  # scores of each linear
    bits: int  # of a kept weight
    whole: list[str] | None  # of each linear, whether a score is that of a whole "column" or "row"; None: of a weight

    @property
    def weights_a_score(self) -> int:
        """How many weights a score keeps at least."""
        if self.whole is None:
            return 1
        return min(rows if kind == "column" else cols for (rows, cols), kind in zip(self.shapes, self.whole))

    def rank(self, order: np.ndarray) -> None:
        """Note in which linear, and where in it, each ranked score lies."""
        ends = np.cumsum(self.sizes)
        self.linear = np.searchsorted(ends, order, side="right")
        self.place = order - np.concatenate([[0], ends])[self.linear]
        if self.whole is None:
            rows, cols = np.array(self.shapes).T
            self.row_ends = np.cumsum(rows)
            self.row = (self.row_ends - rows)[self.linear] + self.place // cols[self.linear]  # of all linears' rows

    def of_first(self, count: int) -> int:
        """Bits of the first ``count`` of the ranking; per linear the cheapest index, or whole columns."""
        if self.whole is None:
            return self._of_weights(count)
        linear, place, total = self.linear[:count], self.place[:count], 0
        for index in np.unique(linear):
            (rows, cols), inside = self.shapes[index], place[linear == index]
            row = self.whole[index] == "row"
            keep = np.zeros(rows if row else cols, dtype=bool)
            keep[inside] = True
            total += kept_bits(np.broadcast_to(keep[:, None] if row else keep, (rows, cols)), self.bits)
        return total

    def _of_weights(self, count: int) -> int:
        """The same of single weights: one pass counts them in every row of the model, whatever linears it has."""
        counts, total = np.bincount(self.row[:count], minlength=self.row_ends[-1]), 0
        for (_, cols), own in zip(self.shapes, np.split(counts, self.row_ends[:-1])):
            if kept := int(own.sum()):
                index = single_index_bits(own, cols, self.bits < KEPT_BITS)
                total += values_bits(kept, self.bits) + min(index.values())
        return total
