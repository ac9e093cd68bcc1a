"""How likely a model finds the answers of worked documents: the number that every attribution is taken of.

    f(x) = mean over the answer's tokens t of log p(x_t | x_<t)      nats a token, one number a document

An answer's tokens are those that the document's loss_mask marks; in general text that is every token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from core.batching import length_batches
from core.errors import UserError
from core.forward import call, device_of, pad
from core.model import DTYPES
from core.settings import Setting
from core.types import CalibSet, ScoreContext
from streams.gradients import computing_in

SLICE = 2**26  # logits that are turned to float32 at a time


@dataclass(frozen=True)
class Answers:
    """Some documents as one left-padded batch, and where their answers' tokens are predicted."""

    docs: tuple[int, ...]  # places in the calibration set
    ids: torch.Tensor  # int64 [B, T]
    mask: torch.Tensor  # [B, T]
    row: torch.Tensor  # int64 [answer tokens]: which document
    place: torch.Tensor  # int64: the position whose logits predict it, from the end (1 = the last)
    token: torch.Tensor  # int64

    def repeated(self, times: int) -> "Answers":
        """Every document ``times`` times in a row."""
        shift = torch.arange(times, device=self.row.device)
        return Answers(docs=tuple(d for d in self.docs for _ in range(times)),
                       ids=self.ids.repeat_interleave(times, 0), mask=self.mask.repeat_interleave(times, 0),
                       row=(self.row[:, None] * times + shift).flatten(),
                       place=self.place.repeat_interleave(times), token=self.token.repeat_interleave(times))

    @property
    def last(self) -> int:
        """How many positions from the end predict an answer's token."""
        return int(self.place.max())


def chosen(ctx: ScoreContext, limit: Setting) -> list[int]:
    """The first ``limit`` documents that have an answer; UserError if there is none.

    A mixture lists the task's documents before the text's, so of one they are taken evenly from the whole list.
    """
    docs, count = [i for i, mask in enumerate(ctx.answers.loss_mask) if mask[1:].any()], ctx.param(limit.name)
    if ctx.answers.mixed and len(docs) > count:
        docs = [docs[int((at + 0.5) * len(docs) / count)] for at in range(count)]
    docs = docs[:count]
    if not docs:
        raise UserError(f"no document of {ctx.answers.task} has an answer to attribute; use another --calib_dataset")
    return docs


def batches(ctx: ScoreContext, docs: list[int], copies: int = 1) -> list[Answers]:
    """The documents in length-sorted batches of at most ``batch_tokens`` padded tokens with so many copies of each."""
    lengths = [len(ctx.answers.tokens[i]) for i in docs]
    return [batch(ctx.answers, [docs[i] for i in group], device_of(ctx.model))
            for group in length_batches(lengths, max(1, ctx.param("batch_tokens") // copies))]


def batch(calib: CalibSet, docs: list[int], device) -> Answers:
    """These documents as one batch."""
    ids, mask = pad([calib.tokens[doc] for doc in docs], device)
    row, place, token = [], [], []
    for at, doc in enumerate(docs):
        tokens, marked = calib.tokens[doc], calib.loss_mask[doc]
        for position in np.flatnonzero(marked[1:]) + 1:
            row.append(at)
            place.append(len(tokens) - int(position) + 1)
            token.append(int(tokens[position]))
    return Answers(tuple(docs), ids, mask, *(torch.tensor(x, device=device) for x in (row, place, token)))


def log_probability(model, asked: Answers) -> torch.Tensor:
    """f of every document of the batch: float32 [B], in nats a token, with a graph if gradients are on."""
    logits = call(model, asked.ids, asked.mask, last_only=True, last=asked.last).logits
    at = logits.shape[1] - asked.place
    step = max(1, SLICE // logits.shape[-1])
    parts = [logits[row, place].float().log_softmax(-1).gather(1, token[:, None])[:, 0]
             for row, place, token in zip(asked.row.split(step), at.split(step), asked.token.split(step))]
    total = torch.zeros(len(asked.docs), device=logits.device).index_add(0, asked.row, torch.cat(parts))
    return total / torch.bincount(asked.row, minlength=len(asked.docs))


@contextmanager
def embedded(model: nn.Module, value: torch.Tensor | None) -> Iterator[None]:
    """Token embeddings [B, T, d] in place of those of the ids (None: those), as a leaf that gradients flow to."""
    def hook(_module, _args, out):
        return (out if value is None else value.to(out.dtype)).detach().requires_grad_(torch.is_grad_enabled())

    handle = model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def computing(ctx: ScoreContext) -> Iterator[None]:
    """The model in --grad_dtype for a while."""
    own = next(iter(ctx.linears.values())).weight.dtype
    with computing_in(ctx.model, own, DTYPES[ctx.param("grad_dtype")]):
        yield


@torch.no_grad()
def baseline(ctx: ScoreContext, docs: list[int], kind: str) -> torch.Tensor:
    """The embedding [d] that stands for no input: "mean" of the documents' tokens, "zero", or that of the "pad" token.
    """
    table = ctx.model.get_input_embeddings()
    if kind == "mean":
        tokens = np.concatenate([ctx.answers.tokens[doc] for doc in docs])
        return table(torch.as_tensor(tokens, device=device_of(ctx.model))).float().mean(0)
    if kind == "zero":
        return torch.zeros(table.weight.shape[1], device=device_of(ctx.model))
    return table(torch.tensor(ctx.tokenizer.pad_token_id, device=device_of(ctx.model))).float()
