"""Forward passes on a shared key-value cache.

A state is what the model knows after the contexts: cache, attention mask [B, S] (S with padding),
true lengths [B] and the float32 log-probabilities [B, V] of the next token.  Contexts are padded on
the left, so every last token stands in the last column; continuations follow and are padded on the
right.  Hence real tokens of a row are contiguous and positions are counted without padding.

With a shared prefix the columns are [prefix | padding | rest]; attention masks the hole and positions
skip it.  A sliding window counts columns, so there the prefix is used only while everything fits in
the window (:func:`prefix_fits`).

Families that return no such cache (state spaces, GPT, MPT), or that read padding in spite of the mask, are run again
from the first token, every row alone and without padding (``rows_alone``, core/forward.py): slow, and right.
"""

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NamedTuple

import torch

from core import forward
from core.batching import LAUNCH
from core.forward import device_of, pad

LOGIT_ROWS = 4096  # logits rows turned to float32 at once; bounds memory at 4 bytes x rows x vocabulary


@dataclass
class State:
    """The model after a batch of contexts."""

    cache: object
    mask: torch.Tensor  # int64 [B, S]
    lengths: torch.Tensor  # int64 [B], tokens without padding
    logprobs: torch.Tensor  # float32 [B, V], next token


class Scored(NamedTuple):
    """A continuation as the model takes it: float32 log-probabilities [n], nats; bool [n], each its first choice."""

    logprobs: torch.Tensor
    greedy: torch.Tensor


@dataclass(frozen=True)
class Prefix:
    """Leading tokens that all requests share, run once at batch 1."""

    tokens: tuple[int, ...]
    cache: object


@dataclass(frozen=True)
class Again:
    """In a cache's place: the tokens of each row, to be run again."""

    rows: tuple[tuple[int, ...], ...]
    layers: list = field(default_factory=list)  # none, so none has a window

    def select(self, indices: list[int]) -> "Again":
        return Again(tuple(self.rows[i] for i in indices))


def call(model, ids, mask, positions, cache=None, last_only: bool = False):
    """Run the model on new tokens with a cache, or, where rows run alone, on all tokens again."""
    if not isinstance(cache, Again) and not getattr(model, "rows_alone", False):
        out = forward.call(model, ids, mask, positions, last_only=last_only, past_key_values=cache, use_cache=True)
        if getattr(out, "past_key_values", None) is not None:
            return out
    before = Again(((),) * len(ids)) if cache is None else cache
    return _again(model, ids, mask[:, -ids.shape[1]:].bool(), before, last_only=last_only)


def _again(model, ids, new: torch.Tensor, before: Again, last_only: bool):
    """The logits [B, T, V] of the new tokens, or [B, 1, V] of the last; those of padding, where ``new`` is False, are
    zero.
    """
    rows, logits = [], None
    where = new[:, -1:] if last_only else new
    for at, seen in enumerate(before.rows):
        rows.append((*seen, *ids[at, new[at]].tolist()))
        whole = torch.tensor([rows[-1]], device=ids.device)
        out = forward.call(model, whole, torch.ones_like(whole), last_only=last_only).logits[0]
        logits = out.new_zeros(*where.shape, out.shape[-1]) if logits is None else logits
        logits[at, where[at]] = out[-1:] if last_only else out[len(seen):]
    return SimpleNamespace(logits=logits, past_key_values=Again(tuple(rows)))


def expand(cache, indices: torch.Tensor | None):
    """Return a cache whose batch rows are ``indices`` of the old one (None = all, as they are).

    The old cache stays usable: layers are copied shallowly, and a dynamic layer grows by binding new
    tensors, never by writing into old ones.
    """
    if isinstance(cache, Again):
        return cache if indices is None else cache.select(indices.tolist())
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in new.layers:
        for key, value in vars(layer).items():
            if isinstance(value, dict):  # states of linear attention are kept in dicts and written in place
                setattr(layer, key, {k: v.clone() if torch.is_tensor(v) else v for k, v in value.items()})
        if indices is not None:
            select = getattr(layer, "batch_select_indices", None) or layer.reorder_cache
            select(indices)
    return new


def run_prefix(model, tokens) -> Prefix:
    """Run the shared tokens once."""
    ids = torch.tensor([tokens], dtype=torch.long, device=device_of(model))
    positions = torch.arange(len(tokens), device=ids.device)[None]
    return Prefix(tuple(tokens), call(model, ids, torch.ones_like(ids), positions, last_only=True).past_key_values)


def prefix_fits(prefix: Prefix | None, contexts, reserve: int) -> bool:
    """Whether all contexts begin with the prefix and, in sliding layers, everything stays inside the window."""
    if prefix is None:
        return False
    n = len(prefix.tokens)
    if any(len(c) <= n or tuple(c[:n]) != prefix.tokens for c in contexts):
        return False
    width = max(len(c) for c in contexts) + reserve
    windows = [layer.sliding_window for layer in prefix.cache.layers if getattr(layer, "is_sliding", False)]
    return all(width < window for window in windows)


def prefill(model, contexts, prefix: Prefix | None = None) -> State:
    """Run the contexts, one forward, the head at the last position only."""
    start = 0 if prefix is None else len(prefix.tokens)
    ids, mask = pad([c[start:] for c in contexts], device_of(model))
    positions = (mask.cumsum(1) - 1 + start).clamp(min=0)
    cache = None
    if prefix is not None:
        cache = expand(prefix.cache, torch.zeros(len(contexts), dtype=torch.long, device=ids.device))
        mask = torch.cat([mask.new_ones(len(contexts), start), mask], dim=1)
    out = call(model, ids, mask, positions, cache=cache, last_only=True)
    return State(out.past_key_values, mask, mask.sum(1), log_softmax(out.logits[:, -1]))


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in float32, whatever the model computes in."""
    return torch.log_softmax(logits.float(), dim=-1)


def score_continuations(model, state: State, jobs) -> list[Scored]:
    """Return per job (row, token ids) the log-probability of each token, and whether it is the likeliest.

    First tokens come from the state; the rest of all jobs runs right-padded on an expanded cache, in one
    forward or, where long and short continuations meet, in a few of similar length.  The state stays as it was.
    """
    rows, tokens = [row for row, _ in jobs], [ids[0] for _, ids in jobs]
    first = state.logprobs[rows, tokens]
    best = state.logprobs.argmax(-1)[rows] == torch.tensor(tokens, device=first.device)
    results = [Scored(first[i:i + 1], best[i:i + 1]) for i in range(len(jobs))]
    longer = [i for i, (_, ids) in enumerate(jobs) if len(ids) > 1]
    for group in _groups(longer, [len(ids) - 1 for _, ids in jobs]):
        for i, tail in zip(group, _tails(model, state, [jobs[i] for i in group]), strict=True):
            results[i] = Scored(*(torch.cat(pair) for pair in zip(results[i], tail, strict=True)))
    return results


def _groups(members: list[int], lengths: list[int]) -> list[list[int]]:
    """Split jobs by length while the best cut saves more than LAUNCH padded tokens; groups keep the given order."""
    ranked = sorted(members, key=lambda i: lengths[i])
    n, widest = len(ranked), lengths[ranked[-1]] if ranked else 0
    saved, cut = max(((widest - lengths[ranked[k - 1]]) * k, k) for k in range(1, n)) if n > 1 else (0, 0)
    if saved <= LAUNCH:
        return [sorted(members)] if members else []
    return _groups(ranked[:cut], lengths) + _groups(ranked[cut:], lengths)


def _tails(model, state: State, jobs) -> list[Scored]:
    """All tokens but the first, one right-padded forward."""
    rows = [row for row, _ in jobs]
    ids, mask = pad([ids[:-1] for _, ids in jobs], left=False, device=state.mask.device)
    index = torch.tensor(rows, device=state.mask.device)
    as_is = rows == list(range(len(state.mask)))
    positions = state.lengths[index][:, None] + torch.arange(ids.shape[1], device=ids.device)
    mask, cache = torch.cat([state.mask[index], mask], dim=1), expand(state.cache, None if as_is else index)
    out = call(model, ids, mask, positions, cache=cache)
    return _gather(out.logits, [ids[1:] for _, ids in jobs])


def _gather(logits: torch.Tensor, targets) -> list[Scored]:
    """Each row's target tokens; padded positions are never turned to float32."""
    rows = torch.tensor([i for i, t in enumerate(targets) for _ in t], device=logits.device)
    cols = torch.tensor([j for t in targets for j in range(len(t))], device=logits.device)
    wanted = torch.tensor([token for t in targets for token in t], device=logits.device)
    values, best = [], []
    for start in range(0, len(rows), LOGIT_ROWS):
        some = slice(start, start + LOGIT_ROWS)
        logprobs = log_softmax(logits[rows[some], cols[some]])
        values.append(logprobs.gather(1, wanted[some, None])[:, 0])
        best.append(logprobs.argmax(-1) == wanted[some])
    sizes = [len(t) for t in targets]
    return list(map(Scored, torch.cat(values).split(sizes), torch.cat(best).split(sizes)))
