"""The Hessians of the full-precision model, block by block, shared by the scorers that read them."""

from collections.abc import Callable

from torch import nn

from core.types import Aid, ScoreContext
from quantization.stream import BlockStream, walk


def each_hessian(ctx: ScoreContext, see: Callable[[str, nn.Linear, Aid], None], what: str) -> None:
    """Call ``see(fqn, linear, Aid)`` for every linear; linears that read the same input share ``aid.shared``.  Weights stay as they are."""
    stream = BlockStream(ctx.model, ctx.blocks, ctx.solver_calib.tokens)
    walk(stream, ctx.linears, ctx.block_of, lambda fqn, aid: see(fqn, ctx.linears[fqn], aid), sequential=False,
         progress=lambda done, total: ctx.progress(what, done, total))
