"""Controls that every table carries: full precision, uniform bits, random scores, weight magnitude.

``random`` draws one standard normal a block (unit z, like TAQ's combined score), so that it differs from
TAQ in nothing but what the numbers know.  ``magnitude`` is |W|, element by element, the classic
score that sees neither task nor data.
"""

import torch

from core.registry import method, scorer
from core.types import ScoreContext, Scores


@scorer("random", granularity="layer", needs=(), params=("seed",))
def random_scores(ctx: ScoreContext) -> Scores:
    """A standard normal number a block, from the seed alone."""
    draw = torch.randn(len(ctx.blocks), generator=torch.Generator().manual_seed(ctx.param("seed")), dtype=torch.float64)
    return Scores("layer", ctx.spread(draw.tolist()), "z")


@scorer("magnitude", granularity="element", needs=())
def magnitude(ctx: ScoreContext) -> Scores:
    """|W| of every weight, float32 [out, in]."""
    return Scores("element", {fqn: lin.weight.detach().abs().float().cpu() for fqn, lin in ctx.linears.items()}, "weight")


method("fp16", quantizer=None, allocator="none")
method("uniform", allocator="uniform")
method("random", scorer="random")
method("magnitude", scorer="magnitude")
