"""SliM-LLM: groups of input columns by salience.

Common "SliM-LLM", group scores:   s_g = Σ over rows and columns of the group of w_ij² / [U_jj]²

U = upper Cholesky factor of (H + 1 % damping)⁻¹ of the full-precision model's inputs; groups are those of the common
grid.
The common allocator gives whole linears their bits, by the mean salience of their groups.
Paper: arXiv 2405.14917, Eq. 3.  Unit: salience.
"SliM-LLM-native"  groups of 128 at N−1, N or N+1 bits found by the double-pointer search, then a clip search per group
and row.
"""

from __future__ import annotations

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.types import ScoreContext, Scores

hessians, search = Lazy("streams.hessians"), Lazy("quantization.solvers.slim_search")


@scorer("SliM-LLM", granularity="group", needs=("hessian",), params=("group_size",))
def slim_llm(ctx: ScoreContext) -> Scores:
    """Salience summed over each group, float32 [1, in/g]."""
    def score(weight, factor):
        weight = torch.where(factor.dead, 0.0, weight)  # a dead input's weight has no salience
        return search.group_salience(weight, factor.diagonal, ctx.param("group_size")).float()[None]

    return Scores("group", hessians.score_each(ctx, score, "saliences"), "salience")


method("SliM-LLM", scorer="SliM-LLM", paper="arXiv:2405.14917")
method("SliM-LLM-native", allocator="flat", quantizer="slim", native=True, paper="arXiv:2405.14917", bits="N<8",
       group=128, form="slim")
