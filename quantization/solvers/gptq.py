"""GPTQ: one solver for every grid, as pure functions of a weight and a Hessian.

For one linear W [out, in] with inputs x, H = (2 / sequences) Σ x xᵀ [in, in]; the loss of ŵ is tr((W−Ŵ) H (W−Ŵ)ᵀ).
Columns are quantized from the first to the last; what column j loses is pushed into the later columns:

    U = upper Cholesky factor of (H + λI)⁻¹,   λ = percdamp · mean(diag H)
    e_j = (w_j − q(w_j)) / U_jj,   w_k ← w_k − e_j U_jk   for k > j

Paper: arXiv 2210.17323, Eq. 2–3 and Algorithm 1.  One factor serves every linear that reads the same input.
"""

from dataclasses import dataclass, replace

import torch

from core.registry import quantizer
from core.types import Aid, LayerPlan, Stored
from quantization.solvers.columns import BLOCK, Groups
from quantization.solvers.grid import fp16_up
from streams.hessians import factorise

PLAIN = (1.0,)

COARSE = tuple(1 - i / 25 for i in range(16))  # 1.00, 0.96 ... 0.40

PUBLISHED = tuple(1 - i / 100 for i in range(80))  # 1.00, 0.99 ... 0.21


@dataclass(frozen=True)
class Solver:
    """How a linear is solved; the defaults are those of the common table."""

    percdamp: float = 0.01
    symmetric: bool = False
    shrinks: tuple[float, ...] = COARSE  # factors on [min, max] tried for the least Σ|w−q|^norm a row; (1.0,) = plain min-max
    norm: float = 2.4
    act_order: bool = False  # columns by falling diag H instead of as they stand
    static_groups: bool = False  # scales from the weights before any update, groups over the columns as they stand
    stored: bool = True  # scales at fp16 and kept weights at bf16, as they are counted; False = float32, as published
    stale: bool = False  # published: a group that begins inside a block of 128 columns is fitted before the block's updates reach it


def solve(weight: torch.Tensor, hessian: torch.Tensor, layer: LayerPlan, how: Solver = Solver(), shared: dict | None = None,
          what: str = "a linear") -> Stored:
    """Quantize one linear.

    weight: float32 [out, in]; hessian: float32 [in, in], undamped; layer: bits of 1..8 or ``group_bits``, group size
    (>= in: one scale a row; a ragged last group is allowed), ``keep`` mask [out, in].  ``shared`` holds the factor for
    linears that read the same input.  Kept weights stretch no scale, receive the updates of earlier columns, and
    pass nothing on.  Raises UserError when the Hessian is not finite or cannot be factorised.
    """
    order, factor = _ordered_factor(hessian, how, {} if shared is None else shared, what)
    columns = weight.float().t().contiguous()  # [in, out]: a column of W is one row here, contiguous
    keep = None if layer.keep is None else torch.as_tensor(layer.keep, device=weight.device).t().contiguous()
    sizes = Groups(layer, weight.shape[1])
    fits = {}
    if how.static_groups or (how.stale and sizes.count == 1):  # before dead columns are cleared, as published
        fits = {g: fit(columns[sizes.span(g)], None if keep is None else keep[sizes.span(g)], sizes.bits[g], how) for g in range(sizes.count)}
    if order is not None:
        columns, keep = columns[order], None if keep is None else keep[order]
    columns[factor.dead] = 0.0
    state = _State(columns, keep, factor.upper, sizes, how, fits, order if how.static_groups else None)
    state.run()
    back = slice(None) if order is None else torch.argsort(order)
    scale, zero = torch.stack([state.fits[g][0] for g in range(sizes.count)], 1), torch.stack([state.fits[g][1] for g in range(sizes.count)], 1)
    regrouped = order is not None and not how.static_groups and sizes.count > 1
    parts = {"codes": state.codes[back].t().contiguous(), "scale": scale, "zero": zero} | ({"order": order} if regrouped else {})
    notes = {"damp": factor.damp, "tries": factor.tries, "loss": state.loss}
    made = replace(layer, ordered=regrouped, scale_bits=16 if how.stored else 32)
    return Stored(state.columns[back].t().contiguous(), made, parts, notes)


def _ordered_factor(hessian: torch.Tensor, how: Solver, shared: dict, what: str):
    """(column order or None, factor of the Hessian in that order), once for all linears that share the input."""
    key = ("gptq", how.percdamp, how.act_order)
    if key not in shared:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if how.act_order else None
        shared[key] = order, factorise(hessian if order is None else hessian[order][:, order], how.percdamp, what)
    return shared[key]


class _State:
    """The column loop; ``columns`` [in, out] becomes ŵ, ``codes`` uint8 [in, out] what is stored."""

    def __init__(self, columns, keep, upper, sizes: Groups, how: Solver, fits: dict, order):
        self.columns, self.keep, self.upper, self.sizes, self.how, self.fits = columns, keep, upper, sizes, how, fits
        self.codes = torch.zeros_like(columns, dtype=torch.uint8)
        self.group_of = (torch.arange(len(columns)) if order is None else order.cpu()) // sizes.size
        self.loss = 0.0  # Σ e² = tr((W−Ŵ)(H + λI)(W−Ŵ)ᵀ)

    def run(self) -> None:
        step = BLOCK if self.how.stale else self.sizes.block()
        for start in range(0, len(self.columns), step):
            end = min(start + step, len(self.columns))
            errors = self._block(start, end)
            self.columns[end:] -= self.upper[start:end, end:].t() @ errors
            self.loss += float(errors.square().sum(dtype=torch.float64))

    def _block(self, start: int, end: int) -> torch.Tensor:
        """Quantize columns start..end; returns their scaled errors [end − start, out]."""
        work = self.columns[start:end].clone() if self.how.stale else self.columns[start:end]
        upper = self.upper[start:end, start:end]
        pivots, errors = upper.diagonal().tolist(), torch.zeros_like(work)
        for i, group in enumerate(self.group_of[start:end].tolist()):
            if group not in self.fits:
                span = self.sizes.span(group)
                kept = None if self.keep is None else self.keep[span]
                self.fits[group] = fit(self.columns[span], kept, self.sizes.bits[group], self.how)
            column = work[i]
            value, self.codes[start + i] = self._quantized(column, group, None if self.keep is None else self.keep[start + i])
            errors[i] = (column - value) / pivots[i]
            work[i] = value
            work[i + 1:].addr_(upper[i, i + 1:], errors[i], alpha=-1)
        self.columns[start:end] = work
        return errors

    def _quantized(self, column, group: int, kept):
        scale, zero = self.fits[group]
        codes = (column / scale).round_().add_(zero).clamp_(0, 2 ** self.sizes.bits[group] - 1)
        value = (codes - zero).mul_(scale)
        if kept is not None:
            value = torch.where(kept, column.bfloat16().float() if self.how.stored else column, value)
        return value, codes.to(torch.uint8)


def fit(columns: torch.Tensor, keep: torch.Tensor | None, bits: int, how: Solver) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and integer zero point of each row, float32 [out], for a group of ``columns`` [g, out].

    Kept weights are replaced by the mean of the row's others, so that they do not stretch the range; min ≤ 0 ≤ max.
    The first of equally good ``shrinks`` wins.
    """
    if keep is not None and keep.any():
        others = (~keep).sum(0).clamp(min=1)
        columns = torch.where(keep, torch.where(keep, 0.0, columns).sum(0) / others, columns)
    top = 2**bits - 1
    low, high = columns.amin(0).clamp(max=0), columns.amax(0).clamp(min=0)
    if how.symmetric:
        high = torch.maximum(-low, high)
        low = torch.where(low < 0, -high, low)
    flat = (low == 0) & (high == 0)  # nothing to represent: any scale will do
    low, high = torch.where(flat, -1.0, low), torch.where(flat, 1.0, high)
    best = None
    for shrink in how.shrinks:
        scale, zero = _scale_zero(low * shrink, high * shrink, top, how)
        if len(how.shrinks) == 1:
            return scale, zero
        error = _row_error(columns, scale, zero, top, how.norm)
        if best is None:
            best, chosen = error, (scale, zero)
        else:
            better = error < best
            best = torch.where(better, error, best)
            chosen = torch.where(better, scale, chosen[0]), torch.where(better, zero, chosen[1])
    return chosen


def _scale_zero(low, high, top: int, how: Solver):
    scale = (high - low) / top
    if how.stored:
        scale = fp16_up(scale)
    zero = torch.full_like(scale, (top + 1) / 2) if how.symmetric else (-low / scale).round()
    return scale, zero.clamp(0, top) if how.stored else zero


def _row_error(columns, scale, zero, top: int, norm: float) -> torch.Tensor:
    """Σ over the group of |ŵ − w|^norm, float32 [out]."""
    error = (columns / scale).round_().add_(zero).clamp_(0, top).sub_(zero).mul_(scale).sub_(columns)
    return error.square_().sum(0) if norm == 2 else error.abs_().pow_(norm).sum(0)


SEARCHES = {"none": PLAIN, "coarse": COARSE, "published": PUBLISHED}


@quantizer("gptq", needs=("hessian",), options=("search", "act_order", "static_groups", "symmetric", "percdamp"))
def gptq(weight: torch.Tensor, layer: LayerPlan, aid: Aid) -> Stored:
    """GPTQ on the common grid, linears one input after the other; "published" puts the public code's float32 scales and stale groups in."""
    named = {k: aid.options[k] for k in ("act_order", "static_groups", "symmetric", "percdamp") if k in aid.options}
    published = bool(aid.options.get("published"))
    how = Solver(shrinks=SEARCHES[aid.options.get("search", "coarse")], stored=not published, stale=published, **named)
    return solve(weight, aid.hessian, layer, how, aid.shared, aid.fqn)
