"""The order in which linears, columns and single weights are chosen; equal scores never go to the earliest.

Whenever a scorer is blind, "the earliest wins" would protect the first blocks.  Instead equal scores fall in spread
order, which knows no score and is the same each time; each of its prefixes is spread over the whole model:

    blocks, linears   by bit-reversed position
    columns, weights  by the fractional part of position · √2: every prefix lies evenly over the model, and over the
                      rows and columns of each linear, also where widths are powers of two (bit-reversed positions
                      would then keep whole columns)
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from core.lazy import torch

ROOT = np.uint64(0x6A09E667F3BCC909)  # 2^64 · (√2 − 1), made odd so that no two positions have one key


def spread_order(count: int) -> list[int]:
    """0..count-1 by bit-reversed value."""
    width = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda i: int(f"{i:0{width}b}"[::-1], 2))


def spread_key(positions: np.ndarray) -> np.ndarray:
    """2^64 times the fractional part of position · √2: uint64, each its own."""
    return positions.astype(np.uint64) * ROOT  # multiplication wraps at 2^64


def first_k(flat: torch.Tensor, k: int, key: Callable[[np.ndarray], np.ndarray] = spread_key) -> torch.Tensor:
    """Positions of the k highest of ``flat`` float32 [n], best first; of equal scores the lowest ``key`` first.

    The first j of them are ``first_k(flat, j)``.  Keys are computed for the tied and the chosen positions alone.
    """
    if k == 0:
        return torch.zeros(0, dtype=torch.long)
    scores = flat.numpy()
    threshold = np.partition(scores, len(scores) - k)[-k]  # torch.topk takes 16 bytes a value, four times as many
    above, tied = np.flatnonzero(scores > threshold), np.flatnonzero(scores == threshold)
    room = k - len(above)
    if room < len(tied):
        tied = tied[np.argpartition(key(tied), room)[:room]]
    chosen = np.concatenate([above, tied])
    return torch.from_numpy(chosen[np.lexsort((key(chosen), -scores[chosen]))])


def keep_masks(shapes: dict[str, tuple[int, int]], positions: torch.Tensor, sizes: list[int],
               rows: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Bool [out, in] masks of the linears that keep anything.

    ``positions`` count through the scores of all linears, of which each has ``sizes``: out · in weights, or as many
    columns, or rows (``rows`` names those linears).
    """
    flags = torch.zeros(sum(sizes), dtype=torch.bool)
    flags[positions] = True
    masks = {}
    for (name, shape), mask in zip(shapes.items(), flags.split(sizes)):
        if mask.any():
            single = len(mask) == shape[0] * shape[1]
            lines = mask[:, None] if name in rows else mask
            masks[name] = (mask.reshape(shape) if single else lines.expand(shape)).numpy().copy()
    return masks
