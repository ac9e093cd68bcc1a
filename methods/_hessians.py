"""The factorised Hessians of the full-precision model, block by block, shared by the scorers that read them."""

from collections.abc import Callable

import torch

from core.types import Aid, ScoreContext
from quantization.gptq import Factor, factorise
from quantization.stream import BlockStream, walk


def score_each(ctx: ScoreContext, score: Callable[[torch.Tensor, Factor], torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    """``score(weight float32 [out, in], factor)`` of every linear, on the CPU; one factor for linears that read the same input."""
    values: dict[str, torch.Tensor] = {}

    def see(fqn: str, aid: Aid) -> None:
        if "factor" not in aid.shared:
            aid.shared["factor"] = factorise(aid.hessian, what=fqn)
        values[fqn] = score(ctx.linears[fqn].weight.detach().float(), aid.shared["factor"]).cpu()

    walk(BlockStream(ctx.model, ctx.blocks, ctx.solver_calib.tokens), ctx.linears, ctx.block_of, see, sequential=False,
         progress=lambda done, total: ctx.progress(what, done, total))
    return values
