"""Streams of block outputs over the calibration prompts, shared by the activation scorers.

Every batch is a pure function of the prompts and ``batch_tokens``; prompts are padded on the left, so the
last position of a row is its last real token, and padding never enters a statistic.
"""

from collections.abc import Callable

import torch

from core.architecture import expert_of
from core.batching import length_batches
from core.errors import UserError
from core.forward import call, device_of, inputs_of, pad, watch
from core.types import ScoreContext


def prompts(ctx: ScoreContext, limit: str) -> list[int]:
    """Indices of the first ``ctx.param(limit)`` calibration prompts."""
    count = min(ctx.param(limit), len(ctx.calib.tokens))
    if count < 1:
        raise UserError(f"the calibration set of {ctx.calib.task} is empty; give at least one document (--calib_size)")
    return list(range(count))


def batches(ctx: ScoreContext, chosen: list[int]) -> list[list[int]]:
    """The chosen prompts in length-sorted batches of at most ``batch_tokens`` padded tokens; one by one where padding
    would be read.
    """
    if getattr(ctx.model, "rows_alone", False):
        return [[one] for one in chosen]
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
            with watch(ctx.blocks, lambda block, h: see(block, one_stream(h, ids.shape), mask.bool(), batch)):
                call(ctx.model, ids, mask)
    ctx.progress(what, len(todo), len(todo))


def one_stream(hidden: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Hidden states as [B, T, d]; of a family that carries several streams, side by side: [B, T, streams · d].

    They come as [B, T, streams, d] (hyper-connections) or [streams, B, T, d] (Gemma 3n).
    """
    if hidden.ndim == 4 and hidden.shape[:2] != shape:
        hidden = hidden.permute(1, 2, 0, 3)
    return hidden.flatten(2) if hidden.ndim == 4 else hidden


def standardise(values: torch.Tensor) -> torch.Tensor:
    """z-scores with the sample standard deviation (n − 1); all zeros when every value is the same."""
    spread = values.std(unbiased=True) if len(values) > 1 else torch.zeros(())
    return (values - values.mean()) / spread if spread > 0 else torch.zeros_like(values)


@torch.inference_mode()
def each_linear_input(ctx: ScoreContext, chosen: list[int],
                      see: Callable[[str, torch.Tensor, torch.Tensor, list[int]], None], what: str) -> None:
    """Call ``see(fqn, x [B, T, in], mask [B, T], batch)`` for every linear and batch; padding is in x, not in the mask.

    Experts read loose tokens: a model that has them sees one prompt at a time, and x of an expert is [1, its tokens,
    in], with a mask that is all True.
    """
    names = list(ctx.linears)
    experts = any(expert_of(fqn) is not None for fqn in names)
    todo = [[one] for one in chosen] if experts else batches(ctx, chosen)

    def shaped(at: int, x: torch.Tensor, mask: torch.Tensor, batch: list[int]) -> None:
        if expert_of(names[at]) is None:
            see(names[at], x.reshape(*mask.shape, -1), mask, batch)
        else:
            loose = x.reshape(1, -1, x.shape[-1])
            see(names[at], loose, mask.new_ones(loose.shape[:2]), batch)

    for done, batch in enumerate(todo):
        ctx.progress(what, done, len(todo))
        ids, mask = padded(ctx, batch)
        with inputs_of(list(ctx.linears.values()),
                       lambda at, x: shaped(at, x, mask.bool(), batch)):
            call(ctx.model, ids, mask)
    ctx.progress(what, len(todo), len(todo))
