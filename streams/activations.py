"""Streams of block outputs over the calibration prompts, shared by the activation scorers.

Every batch is a pure function of the prompts and ``batch_tokens``; prompts are padded on the left, so the
last position of a row is its last real token, and padding never enters a statistic.
"""

from collections.abc import Callable

import torch

from core.errors import UserError
from core.forward import call, device_of, inputs_of, length_batches, pad, watch
from core.types import ScoreContext


def prompts(ctx: ScoreContext, limit: str) -> list[int]:
    """Indices of the first ``ctx.param(limit)`` calibration prompts."""
    count = min(ctx.param(limit), len(ctx.calib.tokens))
    if count < 1:
        raise UserError(f"the calibration set of {ctx.calib.task} is empty; give at least one document (--calib_size)")
    return list(range(count))


def batches(ctx: ScoreContext, chosen: list[int]) -> list[list[int]]:
    """The chosen prompts in length-sorted batches of at most ``batch_tokens`` padded tokens."""
    lengths = [len(ctx.calib.tokens[i]) for i in chosen]
    return [[chosen[i] for i in batch] for batch in length_batches(lengths, ctx.param("batch_tokens"))]


def padded(ctx: ScoreContext, batch: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and mask [B, T] of a batch of prompts, on the model's device."""
    return pad([ctx.calib.tokens[i] for i in batch], device_of(ctx.model))


@torch.inference_mode()
def each_block_output(ctx: ScoreContext, chosen: list[int],
                      see: Callable[[int, torch.Tensor, torch.Tensor, list[int]], None], what: str) -> None:
    """Call ``see(block, h [B, T, d], mask [B, T], batch)`` for every block and batch.

    h is the block's own output.  With ``published`` the last block's h is taken after the final norm, as
    the public script reads it from ``hidden_states[-1]``.
    """
    todo = batches(ctx, chosen)
    for done, batch in enumerate(todo):
        ctx.progress(what, done, len(todo))
        ids, mask = padded(ctx, batch)
        if ctx.param("published"):
            hidden = call(ctx.model, ids, mask, output_hidden_states=True).hidden_states[1:]
            for block, h in enumerate(hidden):
                see(block, h, mask.bool(), batch)
        else:
            with watch(ctx.blocks, lambda block, h: see(block, h, mask.bool(), batch)):
                call(ctx.model, ids, mask)
    ctx.progress(what, len(todo), len(todo))


def standardise(values: torch.Tensor) -> torch.Tensor:
    """z-scores with the sample standard deviation (n − 1); all zeros when every value is the same."""
    spread = values.std(unbiased=True) if len(values) > 1 else torch.zeros(())
    return (values - values.mean()) / spread if spread > 0 else torch.zeros_like(values)


@torch.inference_mode()
def each_linear_input(ctx: ScoreContext, chosen: list[int],
                      see: Callable[[str, torch.Tensor, torch.Tensor, list[int]], None], what: str) -> None:
    """Call ``see(fqn, x [B, T, in], mask [B, T], batch)`` for every linear and batch; padding is in x, not in the mask.
    """
    todo, names = batches(ctx, chosen), list(ctx.linears)
    for done, batch in enumerate(todo):
        ctx.progress(what, done, len(todo))
        ids, mask = padded(ctx, batch)
        with inputs_of(list(ctx.linears.values()),
                       lambda at, x: see(names[at], x.reshape(*ids.shape, -1), mask.bool(), batch)):
            call(ctx.model, ids, mask)
    ctx.progress(what, len(todo), len(todo))
