"""Greedy generation on a prefilled cache, one line a row.

A row ends at a newline, at an end-of-sequence token or after ``max_new_tokens``; rows that ended leave
the batch once they are half of it.  The text is cut at its first newline.
"""

import torch

from evaluation.engine.kv_cache import State, call, expand


def stop_tokens(model, tokenizer) -> set[int]:
    """Return the ids that end a text, as the model's generation config and the tokenizer state them."""
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return {*ids, tokenizer.eos_token_id} - {None}


def greedy(model, tokenizer, state: State, max_new_tokens: int) -> list[list[int]]:
    """Return the new token ids of each row, the one that ended it included; uses up the state's cache."""
    stops, newline = stop_tokens(model, tokenizer), {}
    texts: list[list[int]] = [[] for _ in range(len(state.lengths))]
    rows = list(range(len(texts)))  # batch row -> request
    done = [False] * len(texts)
    cache, mask, lengths, best = state.cache, state.mask, state.lengths, state.logprobs.argmax(-1)
    for step in range(max_new_tokens):
        for row, token in zip(rows, best.tolist(), strict=True):
            if done[row]:
                continue
            texts[row].append(token)
            if token not in newline:  # a newline is one byte, so it shows in its token alone
                newline[token] = "\n" in tokenizer.decode([token])
            done[row] = newline[token] or token in stops
        alive = [i for i, row in enumerate(rows) if not done[row]]
        if not alive or step == max_new_tokens - 1:
            break
        if len(alive) <= len(rows) // 2:
            keep = torch.tensor(alive, device=mask.device)
            cache, mask, lengths, best = expand(cache, keep), mask[keep], lengths[keep], best[keep]
            rows = [rows[i] for i in alive]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = call(model, best[:, None], mask, lengths[:, None], cache, last_only=True)
        cache, lengths, best = out.past_key_values, lengths + 1, out.logits[:, -1].argmax(-1)
    return texts


def first_line(tokenizer, ids: list[int]) -> str:
    """Return the text up to the first newline, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True).split("\n", 1)[0]
