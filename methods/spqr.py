"""SpQR: weights whose rounding costs the most, given what the later columns can repair.

Common "SPQR", element scores:   s_ij = (w_ij − q(w_ij))² / [U_jj]²      (paper Eq. 2, in the code's conditional form)

U = upper Cholesky factor of (H + 1 % damping)⁻¹ of the full-precision model's inputs, q = round-to-nearest at the base
level of the budget.  Unit: layer loss.  Paper: arXiv 2306.03078.
"SPQR-native"         N bits, groups of 16, 3-bit scales and zeros over 16 rows, outliers above 0.2, activation order,
                      damping 1.0 (the repository's recipe)
"SPQR-budget-native"  the same on N−1 bits, each linear's threshold bisected until it stores the budget (as the TaCQ
paper runs it)
"""

from __future__ import annotations

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.types import ScoreContext, Scores

hessians, solver = Lazy("streams.hessians"), Lazy("quantization.solvers.spqr")
BILEVEL = {"group": 16, "scale_bits": 3, "zero_bits": 3, "form": "bilevel", "ordered": True}


@scorer("SPQR", granularity="element", needs=("hessian",), params=("base",))
def spqr(ctx: ScoreContext) -> Scores:
    """Squared rounding error over the squared pivot, float32 [out, in]."""
    def score(weight, factor):
        # a weight that never meets an input cannot cost anything
        pivots = torch.where(factor.dead, torch.inf, factor.diagonal)
        return solver.sensitivity(weight, pivots, ctx.base(tuple(weight.shape)))

    return Scores("element", hessians.score_each(ctx, score, "sensitivities"), "layer loss")


method("SPQR", scorer="SPQR", paper="arXiv:2306.03078")
method("SPQR-native", allocator="flat", quantizer="spqr", native=True, paper="arXiv:2306.03078", bits="N", **BILEVEL)
method("SPQR-budget-native", allocator="flat", quantizer="spqr", native=True, paper="arXiv:2306.03078", bits="N-1",
       target="budget", **BILEVEL)
