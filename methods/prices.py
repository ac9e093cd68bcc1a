"""Prices: what a linear loses at every level of bits, so that the allocator buys with losses and not with weights.

    fisher-price     ½ · (1/S) Σ_ij F_ij (W − Q_b(W))²_ij     F = Σ_s g_s², S sequences; nats
    relative-error   ‖W − Q_b(W)‖² / ‖W‖²                      sees neither task nor data: a control

Both round to nearest on the common grid (Q_b) without kept weights; level 16 costs nothing.  The first is the loss's
second-order term with the diagonal of the empirical Fisher matrix for its Hessian (LeCun, Denker and Solla 1989; on
quantization arXiv 1612.01543), the positive control of block scores: it knows how far each level moves each weight.
"""

from __future__ import annotations

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.types import LayerPlan, ScoreContext, Scores

rtn = Lazy("quantization.solvers.rtn")
WHOLE = 16  # a level that leaves the weights alone


def errors(weight: torch.Tensor, levels: tuple[int, ...], group: int) -> list[torch.Tensor]:
    """(W − Q_b(W))² at every level, float32 [out, in] each, zero where weights are left alone."""
    weight = weight.detach().float().cpu()
    return [torch.zeros_like(weight) if bits >= WHOLE else
            (weight - rtn.dequantized(weight, LayerPlan(bits, group))).square() for bits in levels]


def _prices(ctx: ScoreContext, price, unit: str) -> Scores:
    """A price of every linear at every level, float32 [levels]."""
    levels, values = tuple(sorted(ctx.param("levels"))), {}
    for done, (fqn, linear) in enumerate(ctx.linears.items(), 1):
        values[fqn] = torch.stack([price(fqn, linear.weight, error) for error in
                                   errors(linear.weight, levels, ctx.param("group_size"))])
        ctx.progress("prices of every level", done, len(ctx.linears))
    return Scores("linear", values, unit, levels=levels)


@scorer("fisher-price", granularity="linear", needs=("gradients",), params=("grad_dtype", "levels", "group_size"),
        gradients=("square",))
def fisher_price(ctx: ScoreContext) -> Scores:
    """½ · mean over sequences of Σ g² (W − Q_b(W))²."""
    fisher, count = ctx.gradients("square"), len(ctx.solver_calib.tokens)
    return _prices(ctx, lambda fqn, weight, error: (fisher[fqn] * error).sum(dtype=torch.float64).float() / (2 * count),
                   "nats")


@scorer("relative-error", granularity="linear", needs=(), params=("levels", "group_size"))
def relative_error(ctx: ScoreContext) -> Scores:
    """‖W − Q_b(W)‖² / ‖W‖²; a linear of zeros costs nothing."""
    def price(fqn: str, weight: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        norm = weight.detach().float().square().sum(dtype=torch.float64)
        return (error.sum(dtype=torch.float64) / norm.clamp_min(1e-30).cpu()).float()

    return _prices(ctx, price, "share")


method("fisher-price", scorer="fisher-price", paper="arXiv:1612.01543")
method("relative-error", scorer="relative-error")
