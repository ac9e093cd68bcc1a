"""Greedy generation on a prefilled cache.

A row ends at an end-of-sequence token, at one of the task's stop texts or after ``max_new_tokens``; rows that ended
leave the batch once they are half of it.  The text is cut before its first stop text.
"""

import torch

from evaluation.engine.kv_cache import State, call, expand


class Stopping:
    """When a row ends, and the text that it leaves."""

    def __init__(self, model, tokenizer, stop: tuple[str, ...]):
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.end_ids = end_of_sequence(model, tokenizer)
        self.reach = max((len(text.encode()) for text in self.stop), default=0)  # tokens: each holds a byte or more
        self._ends_alone: dict[int, bool] = {}

    def ended(self, ids: list[int]) -> bool:
        """Whether the last of ``ids`` ends the row; to be asked after every token."""
        token = ids[-1]
        if token not in self._ends_alone:
            self._ends_alone[token] = token in self.end_ids or self._holds_stop([token])
        return self._ends_alone[token] or (self.reach > 1 and self._holds_stop(ids[-self.reach:]))

    def _holds_stop(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode(ids)
        return any(stop in text for stop in self.stop)

    def text(self, ids: list[int]) -> str:
        """Return the text before the first stop text, without special tokens."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text[:min((at for stop in self.stop if (at := text.find(stop)) >= 0), default=None)]


def end_of_sequence(model, tokenizer) -> set[int]:
    """Return the ids that end a text, as the model's generation config and the tokenizer state them."""
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return {*ids, tokenizer.eos_token_id} - {None}


def greedy(model, state: State, max_new_tokens: int, stopping: Stopping) -> list[list[int]]:
    """Return the new token ids of each row, those that ended it included; uses up the state's cache."""
    written: list[list[int]] = [[] for _ in range(len(state.lengths))]
    rows = list(range(len(written)))  # batch row -> request
    done = [False] * len(written)
    cache, mask, lengths, best = state.cache, state.mask, state.lengths, state.logprobs.argmax(-1)
    for step in range(max_new_tokens):
        for row, token in zip(rows, best.tolist(), strict=True):
            if not done[row]:
                written[row].append(token)
                done[row] = stopping.ended(written[row])
        alive = [i for i, row in enumerate(rows) if not done[row]]
        if not alive or step == max_new_tokens - 1:
            break
        if len(alive) <= len(rows) // 2:
            keep = torch.tensor(alive, device=mask.device)
            cache, mask, lengths, best = expand(cache, keep), mask[keep], lengths[keep], best[keep]
            rows = [rows[i] for i in alive]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = call(model, best[:, None], mask, lengths[:, None], cache=cache, last_only=True)
        cache, lengths, best = out.past_key_values, lengths + 1, out.logits[:, -1].argmax(-1)
    return written
