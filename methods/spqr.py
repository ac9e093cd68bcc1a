"""SpQR: weights whose rounding costs the most, given what the later columns can repair.

Common "SPQR", element scores:   s_ij = (w_ij − q(w_ij))² / [U_jj]² / u    (paper Eq. 2, in the code's conditional form)

u = mean_j(var_rows(W_j) / [U_jj]²) is the unit in which the published threshold is told, linear by linear; without it
the losses of one linear with large inputs would take all that the model keeps.
U = upper Cholesky factor of (H + 1 % damping)⁻¹ of the full-precision model's inputs, q = round-to-nearest at the base
level of the budget.  Unit: share of the linear's spread.  Paper: arXiv 2306.03078.
"SPQR-native"         N bits, groups of 16, 3-bit scales and zeros over 16 rows, outliers above 0.2, activation order,
                      damping 1.0 (the repository's recipe)
"SPQR-budget-native"  the same on N−1 bits, each linear's threshold searched until it stores the budget (as the TaCQ
paper runs it)
"""

from __future__ import annotations

from core.lazy import Lazy
from core.registry import method, scorer
from core.types import ScoreContext, Scores

hessians, solver = Lazy("streams.hessians"), Lazy("quantization.solvers.spqr")
BILEVEL = {"group": 16, "scale_bits": 3, "zero_bits": 3, "form": "bilevel", "ordered": True}


@scorer("SPQR", granularity="element", needs=("hessian",), params=("base",), version=2)
def spqr(ctx: ScoreContext) -> Scores:
    """Squared rounding error over the squared pivot in units of the linear's threshold, float32 [out, in]."""
    def score(weight, pivots):  # a weight that never meets an input, whose pivot is infinite, cannot cost anything
        unit = solver.unit_of(weight.t(), pivots)
        return solver.sensitivity(weight, pivots, ctx.base(tuple(weight.shape))) / (unit or 1.0)

    return Scores("element", hessians.score_each(ctx, score), "threshold")


method("SPQR", scorer="SPQR", paper="arXiv:2306.03078")
method("SPQR-native", allocator="flat", quantizer="spqr", native=True, paper="arXiv:2306.03078", bits="N", **BILEVEL)
method("SPQR-budget-native", allocator="flat", quantizer="spqr", native=True, paper="arXiv:2306.03078", bits="N-1",
       target="budget", **BILEVEL)
