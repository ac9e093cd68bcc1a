"""What attention heads put out, and what the model says of the answers when a head's output is replaced.

A head's output is its slice of the input to the attention's output projection, [T, width] a document.  It is replaced

    zero    by zeros
    mean    by the head's mean over all tokens of the documents
    other   by what the head puts out in the next document, position by position from the end; a shorter one is repeated
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from core.architecture import Attention, find_heads
from core.errors import UserError
from core.forward import call, device_of, inputs_of, pad, skip_to, watch
from core.types import ScoreContext
from streams.answers import Answers, embedded, log_probability


class Heads:
    """The heads of a model, and replacements of their outputs over some documents."""

    def __init__(self, ctx: ScoreContext, docs: list[int], ablation: str):
        self.ctx, self.docs, self.ablation = ctx, docs, ablation
        self.attention: list[Attention] = find_heads(ctx.model)
        self.outputs = [ctx.linears[one.o] for one in self.attention]
        self._means: list[torch.Tensor] | None = None
        if ablation == "other" and len(docs) < 2:
            raise UserError("--ablation other needs two documents; raise --circuit_docs or --calib_tokens")

    @property
    def most(self) -> int:
        """The largest number of heads in a block."""
        return max(one.heads for one in self.attention)

    def means(self) -> list[torch.Tensor]:
        """The mean input of every output projection over all tokens of the documents: [in] a block."""
        if self._means is None:
            sums, tokens = [0.0] * len(self.outputs), 0
            for doc in self.docs:
                ids, mask = pad([self.ctx.answers.tokens[doc]], device_of(self.ctx.model))
                seen = seen_inputs(self.ctx.model, self.outputs, ids, mask)
                sums = [total + x[0].float().sum(0) for total, x in zip(sums, seen)]
                tokens += ids.shape[1]
            self._means = [total / tokens for total in sums]
        return self._means

    def norms(self, doc: int) -> torch.Tensor:
        """‖·‖₂ of what each head puts out at each token: float64 [T, blocks, most heads], 0 where a block has fewer."""
        ids, mask = pad([self.ctx.answers.tokens[doc]], device_of(self.ctx.model))
        norms = torch.zeros(ids.shape[1], len(self.outputs), self.most, dtype=torch.float64)
        for block, (one, x) in enumerate(zip(self.attention, seen_inputs(self.ctx.model, self.outputs, ids, mask))):
            norms[:, block, :one.heads] = x[0].float().view(-1, one.heads, one.width).norm(dim=2).double().cpu()
        return norms

    @torch.no_grad()
    def replacements(self, asked: Answers) -> list[torch.Tensor]:
        """What replaces the inputs of the output projections: [1 or B, 1 or T, in] a block."""
        if self.ablation == "zero":
            return [torch.zeros(1, 1, linear.in_features, device=asked.ids.device) for linear in self.outputs]
        if self.ablation == "mean":
            return [mean[None, None] for mean in self.means()]
        return self._others(asked)

    def _others(self, asked: Answers) -> list[torch.Tensor]:
        """Of each document, what the next one gives; padding holds zeros."""
        tokens, width = self.ctx.answers.tokens, asked.ids.shape[1]
        rows: list[list[torch.Tensor]] = [[] for _ in self.outputs]
        for doc in asked.docs:
            other = self.docs[(self.docs.index(doc) + 1) % len(self.docs)]
            seen = seen_inputs(self.ctx.model, self.outputs, *pad([tokens[other]], asked.ids.device))
            from_end = torch.arange(len(tokens[doc]) - 1, -1, -1, device=asked.ids.device) % len(tokens[other])
            for block, x in enumerate(seen):
                row = x.new_zeros(width, x.shape[2])
                row[width - len(tokens[doc]):] = x[0, len(tokens[other]) - 1 - from_end]
                rows[block].append(row)
        return [torch.stack(of_block) for of_block in rows]


@torch.inference_mode()
def ablated(heads: Heads, asked: Answers, see: Callable[[int], None] = lambda block: None) -> torch.Tensor:
    """f as it is − f with one head replaced: float32 [B, blocks, most heads], 0 where a block has fewer.

    Exact.  The blocks before the head's own are not run again: they give what they gave.  Every run holds the
    untouched document beside the changed ones, so both come from one batch and its rounding.
    """
    ctx, hidden = heads.ctx, {}
    with watch(ctx.blocks, hidden.__setitem__) as widths:
        call(ctx.model, asked.ids, asked.mask)
    replacing = heads.replacements(asked)
    effects = torch.zeros(len(asked.docs), len(ctx.blocks), heads.most)
    room = max(1, ctx.param("batch_tokens") // asked.ids.numel() - 1)  # heads at a time
    for block, attention in enumerate(heads.attention):
        see(block)
        for first in range(0, attention.heads, room):
            some = range(first, min(first + room, attention.heads))
            copies = asked.repeated(len(some) + 1)
            start = nullcontext() if block == 0 else skip_to(
                ctx.blocks, block - 1, hidden[block - 1].repeat_interleave(len(some) + 1, 0), widths[block - 1])
            change = _one_head_each(attention, some, replacing[block])
            with start, inputs_of([heads.outputs[block]], lambda _at, x, change=change: change(x)):
                f = log_probability(ctx.model, copies).view(len(asked.docs), -1)
            effects[:, block, some.start:some.stop] = (f[:, -1:] - f[:, :-1]).cpu()
    return effects


def _one_head_each(attention: Attention, some: range, other: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Replace one of some heads in each copy of every document; the last copy stays."""
    def change(x: torch.Tensor) -> torch.Tensor:
        changed = x.clone().view(-1, len(some) + 1, *x.shape[1:])  # [B, copies, T, in]
        for copy, head in enumerate(some):
            part = slice(head * attention.width, (head + 1) * attention.width)
            changed[:, copy, :, part] = other[..., part].to(x.dtype)
        return changed.view_as(x)
    return change


def head_sums(heads: Heads, values: list[torch.Tensor], asked: Answers) -> torch.Tensor:
    """Sum [B, T, in] a block over real tokens and each head's slice: float32 [B, blocks, most heads]."""
    out = torch.zeros(len(values[0]), len(values), heads.most)
    for block, (attention, value) in enumerate(zip(heads.attention, values)):
        real = value.float() * asked.mask[..., None].to(value.device)
        parts = real.view(*value.shape[:2], attention.heads, attention.width)
        out[:, block, :attention.heads] = parts.sum((1, 3)).cpu()
    return out


def attributed(heads: Heads, asked: Answers) -> torch.Tensor:
    """Σ over tokens and a head's slice of (a − a')·∂f/∂a: float32 [B, blocks, most heads].

    a: the heads' outputs; a': what replaces them.
    """
    seen, grads = gradients_of_inputs(heads.ctx.model, heads.outputs, asked, None)
    away = heads.replacements(asked)
    return head_sums(heads, [(x - b.to(x)) * grad for x, b, grad in zip(seen, away, grads)], asked)


def integrated_heads(heads: Heads, asked: Answers, baseline: torch.Tensor, steps: int) -> torch.Tensor:
    """The same with gradients integrated from the baseline's embeddings, away from its outputs."""
    return head_sums(heads, integrated_inputs(heads.ctx.model, heads.outputs, asked, baseline, steps), asked)


def integrated_inputs(model: nn.Module, linears: list[nn.Linear], asked: Answers, baseline: torch.Tensor,
                      steps: int) -> list[torch.Tensor]:
    """(a − a°)·(1/m) Σ_k ∂f/∂a at e° + k/m (e − e°), k = 1..m, of each linear's input a: float32 [B, T, in], 0 at
    padding; e: the token embeddings, e°: ``baseline`` [d] for every token, a°: the input there.
    """
    with torch.no_grad():
        real = model.get_input_embeddings()(asked.ids).float()
        empty = baseline.expand_as(real)
        clean, away = (seen_inputs(model, linears, asked.ids, asked.mask, at) for at in (None, empty))
    total: list[torch.Tensor] | None = None
    for k in range(1, steps + 1):
        _, grads = gradients_of_inputs(model, linears, asked, empty + k / steps * (real - empty))
        grads = [grad.float() for grad in grads]  # sums of 16-bit numbers lose what is added last
        total = grads if total is None else [a + b for a, b in zip(total, grads)]
    padding = asked.mask[..., None]
    return [(a.float() - b.float()) * grad / steps * padding.to(a.device) for a, b, grad in zip(clean, away, total)]


def gradients_of_inputs(model: nn.Module, linears: list[nn.Linear], asked: Answers,
                        embeddings: torch.Tensor | None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The linears' inputs and ∂f/∂ of them, both [B, T, in], where the input embeddings are these."""
    seen: dict[int, torch.Tensor] = {}
    with torch.enable_grad(), embedded(model, embeddings), inputs_of(linears, lambda at, x: seen.__setitem__(at, x)):
        f = log_probability(model, asked).sum()
        inputs = [seen[at] for at in range(len(linears))]
        grads = torch.autograd.grad(f, inputs)
    # OPT hands some linears all tokens of all documents in one dimension
    return tuple([x.detach().reshape(*asked.ids.shape, -1) for x in of] for of in (inputs, grads))


def seen_inputs(model: nn.Module, linears: list[nn.Linear], ids: torch.Tensor, mask: torch.Tensor,
                embeddings: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The linears' inputs in one pass, [B, T, in]."""
    seen: dict[int, torch.Tensor] = {}
    given = nullcontext() if embeddings is None else embedded(model, embeddings)
    with torch.no_grad(), given, inputs_of(linears, lambda at, x: seen.__setitem__(at, x)):
        call(model, ids, mask)
    return [seen[at].reshape(*ids.shape, -1) for at in range(len(linears))]
