"""The order in which linears, columns and single weights are chosen; equal scores never go to the earliest.

Whenever a scorer is blind, "the earliest wins" would protect the first blocks.  Instead equal scores fall in spread
order, which knows no score and is the same each time; each of its prefixes is spread over the whole model:

    blocks, linears   by bit-reversed position
    columns, weights  by the fractional part of position · √2: every prefix lies evenly over the model, and over the
                      rows and columns of each linear, also where widths are powers of two (bit-reversed positions
                      would then keep whole columns)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from core.lazy import torch
from core.types import Scores

PIECE = 2**20  # scores that are looked at at a time
ROOT = np.uint64(0x6A09E667F3BCC909)  # 2^64 · (√2 − 1), made odd so that no two positions have one key


class BelowBest(Exception):
    """More scores are asked for than were stored; the others, of −∞, have no order."""

    def __init__(self, asked: int, stored: int):
        super().__init__(f"{asked} scores are asked for, of which only {stored} are stored")
        self.stored = stored


def spread_order(count: int) -> list[int]:
    """0..count-1 by bit-reversed value."""
    width = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda i: int(f"{i:0{width}b}"[::-1], 2))


def spread_key(positions: np.ndarray) -> np.ndarray:
    """2^64 times the fractional part of position · √2: uint64, each its own."""
    return positions.astype(np.uint64) * ROOT  # multiplication wraps at 2^64


def drawn_order(count: int, draw: int) -> list[int]:
    """0..count-1 in spread order, or in the order of a draw above 0."""
    return spread_order(count) if not draw else np.random.default_rng(draw).permutation(count).tolist()


def shuffled(scores: Scores, block_of: dict[str, int], draw: int) -> Scores:
    """The same scores in one another's places: blocks' over blocks, linears' over linears, groups', columns' and rows'
    over each linear.

    Of single weights only the order matters, so a draw of random numbers is a shuffle over the whole model.
    """
    rng, values = np.random.default_rng(draw), scores.values
    if scores.granularity == "layer":
        blocks = sorted(set(block_of.values()))
        first = {block: next(value for fqn, value in values.items() if block_of[fqn] == block) for block in blocks}
        moved = dict(zip(blocks, (first[blocks[i]] for i in rng.permutation(len(blocks))), strict=True))
        return replace(scores, values={fqn: moved[block_of[fqn]] for fqn in values})
    if scores.granularity == "linear":
        names = list(values)
        order = rng.permutation(len(names))
        return replace(scores, values={fqn: values[names[i]] for fqn, i in zip(names, order, strict=True)})
    if scores.granularity == "element":
        drawn = {fqn: torch.rand(value.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
                 for fqn, value in values.items()}
        return replace(scores, values=drawn)
    axis = -1 if scores.levels is None else -2
    return replace(scores, values={fqn: _moved_along(value, axis, rng) for fqn, value in values.items()})


def _moved_along(value: torch.Tensor, axis: int, rng: np.random.Generator) -> torch.Tensor:
    axis = axis - 1 if value.shape[axis] == 1 and value.ndim + axis > 0 else axis  # rows have their scores one above
    return value.index_select(axis, torch.from_numpy(rng.permutation(value.shape[axis])))


def most(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``high`` that fits; 0 does, and what fits stays so when it is made smaller."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def first_k(scores: torch.Tensor | Iterable[torch.Tensor], k: int,
            key: Callable[[np.ndarray], np.ndarray] = spread_key) -> torch.Tensor:
    """Positions of the k highest, best first; of equal scores the lowest ``key`` first.

    scores: float32 [n], or several such, through which positions count on; they are gone through four times, one after
    another, and not held together (those of an iterator are).  The first j positions are ``first_k(scores, j)``.
    Raises BelowBest where the k-th is −∞.
    """
    if k == 0:
        return torch.zeros(0, dtype=torch.long)
    scores = [scores] if torch.is_tensor(scores) else scores
    parts = _Arrays(list(scores) if isinstance(scores, Iterator) else scores)
    threshold, tied = _at_least(parts, k, key)
    if threshold == -np.inf:
        raise BelowBest(k, k - len(tied))
    chosen, values, start = [], [], 0
    for part in parts:
        at = np.flatnonzero(part > threshold)
        chosen.append(at + start)
        values.append(part[at])
        start += len(part)
    chosen, values = np.concatenate([*chosen, tied]), np.concatenate([*values, np.full(len(tied), threshold)])
    return torch.from_numpy(chosen[np.lexsort((key(chosen), -values))])


def best_masks(parts: Collection[np.ndarray], k: int) -> Iterator[np.ndarray]:
    """Of each of several float32 arrays [n], a bool [n]: which are of the k highest of all, those that :func:`first_k`
    gives.
    """
    threshold, tied = _at_least(parts, k, spread_key)
    tied, start = np.sort(tied), 0
    for part in parts:
        mask = part > threshold
        inside = slice(*np.searchsorted(tied, [start, start + len(part)]))
        mask[tied[inside] - start] = True
        start += len(part)
        yield mask


def _at_least(parts: Iterable[np.ndarray], k: int, key: Callable) -> tuple[np.float32, np.ndarray]:
    """(the k-th highest value, positions of those equal to it that belong to the first k)."""
    threshold, above = kth_highest(parts, k)
    tied, start, room = np.zeros(0, np.int64), 0, k - above
    for part in parts:
        tied = np.concatenate([tied, np.flatnonzero(part == threshold) + start])
        if room < len(tied):
            tied = tied[np.argpartition(key(tied), room)[:room]]
        start += len(part)
    return threshold, tied


@dataclass(frozen=True)
class _Arrays:
    """Tensors as arrays, each while it is looked at."""

    tensors: Iterable[torch.Tensor]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (one.float().numpy() for one in self.tensors)


def kth_highest(parts: Iterable[np.ndarray], k: int) -> tuple[np.float32, int]:
    """(the k-th highest value of float32 arrays [n], how many are higher).

    Counts the upper and then the lower half of the bits, so the arrays are gone through twice.
    """
    above, upper = _bucket((bits >> 16 for bits in _ordered(parts)), k)
    more, lower = _bucket((bits[bits >> 16 == upper] & 0xFFFF for bits in _ordered(parts)), k - above)
    bits = np.array([upper << 16 | lower], np.uint32)
    sign = np.where(bits >> 31, np.uint32(1 << 31), np.uint32(0xFFFFFFFF))
    return (bits ^ sign).view(np.float32)[0], above + more


def _ordered(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The parts piece by piece as uint32 that are in the order of the numbers."""
    for part in parts:
        for start in range(0, len(part), PIECE):
            bits = (part[start:start + PIECE] + np.float32(0.0)).view(np.uint32)  # −0 becomes 0, which it equals
            yield bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(1 << 31))


def _bucket(pieces: Iterator[np.ndarray], k: int) -> tuple[int, int]:
    """(how many of all numbers below 2^16 lie above the k-th highest, that number)."""
    counts = np.zeros(1 << 16, np.int64)
    for piece in pieces:
        counts += np.bincount(piece, minlength=len(counts))
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, k))
    return int(from_top[place - 1]) if place else 0, len(counts) - 1 - place


def keep_masks(shapes: dict[str, tuple[int, int]], positions: torch.Tensor, sizes: list[int],
               rows: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Bool [out, in] masks of the linears that keep anything.

    ``positions`` count through the scores of all linears, of which each has ``sizes``: out · in weights, or as many
    columns, or rows (``rows`` names those linears).
    """
    positions, ends, masks = np.sort(positions.numpy()), np.cumsum(sizes), {}
    inside = np.split(positions, np.searchsorted(positions, ends))[:-1]
    for (name, shape), own, size, end in zip(shapes.items(), inside, sizes, ends, strict=True):
        if len(own):
            mask = np.zeros(size, bool)
            mask[own - (end - size)] = True
            single = size == shape[0] * shape[1]
            lines = mask[:, None] if name in rows else mask
            masks[name] = mask.reshape(shape) if single else np.broadcast_to(lines, shape).copy()
    return masks
