"""TALK: task-aware library knapsack, our own method.  One price for every bit.

Every linear is solved once in every form of a menu (bits 2 to 8, groups of three sizes or whole rows, kept weights
from none to 1.6 %), the form's price is the loss that it is predicted to cost the task, and one knapsack buys forms
under the budget (harness/stages/library.py, prices.py).

"TALK"            common row: the common quantizer solves the plan once more, the common accountant counts
"TALK-stitched"   put together from the library, nothing solved again, after a short search that takes what measures
                  better (harness/stages/search.py)
"unrepaired"      its mask as a common row of its own: weights kept over the common grid, all over the model
"TALK[price=...]", "TALK[mask=...]", "TALK[steps=...]": its ingredients one by one
"""

from __future__ import annotations

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.types import ScoreContext, Scores

hessians, solver = Lazy("streams.hessians"), Lazy("quantization.solvers.spqr")


@scorer("unrepaired", granularity="element", needs=("gradients", "hessian"), params=("base",), gradients=("square",))
def unrepaired(ctx: ScoreContext) -> Scores:
    """(w − q(w))² / [U_jj]² · Σ_j F_ij, float32 [out, in]: SpQR's error that later columns cannot repair (H, U and q as
    in methods/spqr.py), in rows that the loss is sensitive to; F = Σ over documents of the squared gradient.
    """
    rows = {fqn: square.sum(1, keepdim=True) for fqn, square in ctx.gradients("square").items()}

    def score(weight, factor):
        pivots = torch.where(factor.dead, torch.inf, factor.diagonal)
        return solver.sensitivity(weight, pivots, ctx.base(tuple(weight.shape)))

    errors = hessians.score_each(ctx, score, "sensitivities")
    return Scores("element", {fqn: error * rows[fqn].to(error.device) for fqn, error in errors.items()}, "nats²")


method("unrepaired", scorer="unrepaired")
method("TALK", allocator="menu")
method("TALK-stitched", allocator="menu", quantizer="library", steps=6)
