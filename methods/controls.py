"""Controls: full precision, uniform bits and random scores in every table; equal scores and magnitude on demand.

``random`` draws one standard normal a block, in the unit of TAQ's combined score (z), which spreads a
little less.  ``equal`` gives every block the same score: the allocator then
minimises the plain error of the weights, which tells what the allocator does without any score.
``magnitude`` is |W|, element by element, the classic score that sees neither task nor data.
"""

from __future__ import annotations

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.types import ScoreContext, Scores

offload = Lazy("core.offload")


@scorer("random", granularity="layer", needs=(), params=("seed",))
def random_scores(ctx: ScoreContext) -> Scores:
    """A standard normal number a block, from the seed alone."""
    draw = torch.randn(len(ctx.blocks), generator=torch.Generator().manual_seed(ctx.param("seed")), dtype=torch.float64)
    return Scores("layer", ctx.spread(draw.tolist()), "z")


@scorer("equal", granularity="layer", needs=())
def equal(ctx: ScoreContext) -> Scores:
    """One, for every block."""
    return Scores("layer", ctx.spread([1.0] * len(ctx.blocks)), "none")


@scorer("magnitude", granularity="element", needs=())
def magnitude(ctx: ScoreContext) -> Scores:
    """|W| of every weight, float32 [out, in]."""
    return Scores("element", {fqn: offload.set_aside(ctx.model, lin.weight.detach().abs().float())
                              for fqn, lin in ctx.linears.items()}, "weight")


method("fp16", quantizer=None, allocator="none")
method("uniform", allocator="uniform")
method("random", scorer="random")
method("equal", scorer="equal")
method("magnitude", scorer="magnitude")
