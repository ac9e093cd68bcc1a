"""SliM-LLM: groups of input columns by salience.

Group scores:        s_g = Σ over rows and columns of the group of w_ij² / [U_jj]²
Common "SliM-LLM":   what each level b loses of a linear's salience,   Σ_ij (w_ij − Q_b(w_ij))² / [U_jj]² / Σ_g s_g

U = upper Cholesky factor of (H + 1 % damping)⁻¹ of the full-precision model's inputs; groups and Q_b, rounding to
nearest, are those of the common grid.  The common allocator gives whole linears their bits.  A salience times the
error of the weights would count that error twice.
Paper: arXiv 2405.14917, Eq. 3.  Unit: salience.
"SliM-LLM-native"  groups of 128 at N−1, N or N+1 bits found by the double-pointer search, then a clip search per group
and row.
"SliM-LLM-budget-native"  the same filled to the budget: in spread order, linears at one bit more.
"""

from __future__ import annotations

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.types import ScoreContext, Scores
from methods.prices import errors

hessians, search = Lazy("streams.hessians"), Lazy("quantization.solvers.slim_search")


@scorer("SliM-LLM", granularity="group", needs=("hessian",), params=("group_size",))
def slim_llm(ctx: ScoreContext) -> Scores:
    """Salience summed over each group, float32 [1, in/g]."""
    def score(weight, pivots):  # a dead input's weight, whose pivot is infinite, has no salience
        return search.group_salience(weight, pivots, ctx.param("group_size")).float()[None]

    return Scores("group", hessians.score_each(ctx, score), "salience")


@scorer("SliM-LLM-loss", granularity="linear", needs=("hessian",), params=("group_size", "levels"))
def slim_llm_loss(ctx: ScoreContext) -> Scores:
    """The share of a linear's salience that each level loses, float32 [levels]; a linear without salience loses 0."""
    levels = tuple(sorted(ctx.param("levels")))

    def score(weight, pivots):
        squared = pivots.square().cpu()
        whole = (weight.cpu().square() / squared).sum(dtype=torch.float64).clamp_min(1e-30)
        lost = [(error / squared).sum(dtype=torch.float64) for error in errors(weight, levels, ctx.param("group_size"))]
        return (torch.stack(lost) / whole).float()

    return Scores("linear", hessians.score_each(ctx, score), "share", levels=levels)


method("SliM-LLM", scorer="SliM-LLM-loss", paper="arXiv:2405.14917")
method("SliM-LLM-native", allocator="flat", quantizer="slim", native=True, paper="arXiv:2405.14917", bits="N<8",
       group=128, form="slim")
method("SliM-LLM-budget-native", allocator="flat_raised", quantizer="slim", native=True, paper="arXiv:2405.14917",
       group=128, form="slim", target="budget")
