"""Which rows run together: as few padded tokens as further forward passes are worth.

Rows stand longest first, and neighbours share a batch.  Of all such cuts within the token budget the one is taken that
makes

    Σ over batches of (padded tokens of contexts + launch · forward passes)

least, by dynamic programming; of equals the one with fewer batches.  A pure function of its arguments: the shape of a
batch moves log-probabilities in 16 bits, so batches belong to the identity of what is computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LAUNCH = 64  # padded tokens that one more forward pass is worth: what it costs besides its tokens


class Rows(NamedTuple):
    """What one request adds to a batch."""

    length: int  # tokens of its longest context
    contexts: int = 1
    tails: int = 0  # rows after the contexts
    tail: int = 0  # tokens of the longest of these
    real: int = 0  # tokens of all of them; those of like length run together, so that hardly more are run
    steps: int = 0  # further forward passes, of one token a row, that all rows of a batch share


def tails_padded(tails: int, tail: int, real: int) -> int:
    """Padded tokens of the rows after the contexts, about."""
    return min(tails * tail, real + 2 * LAUNCH)


def partition(rows: Sequence[Rows], max_tokens: int, launch: int = LAUNCH) -> list[list[int]]:
    """Indices in batches of at most ``max_tokens`` padded tokens, longest first, stable; a larger row runs alone."""
    if not rows:
        return []
    order = sorted(range(len(rows)), key=lambda i: -rows[i].length)
    columns = np.array([rows[i] for i in order], dtype=np.int64).T
    length, tail, steps = columns[0], columns[3], columns[5]
    contexts, tails, real = (np.concatenate([[0], np.cumsum(columns[field])]) for field in (1, 2, 4))
    least, begin, first = np.zeros(len(order) + 1, np.int64), [0], 0
    for end in range(1, len(order) + 1):
        while first < end - 1 and max_tokens < (contexts[end] - contexts[first]) * length[first] + tails_padded(
                tails[end] - tails[first], tail[first:end].max(), real[end] - real[first]):
            first += 1  # a batch that begins here is too large, now and for all ends to come
        window = slice(first, end)
        passes = 1 + np.maximum.accumulate(steps[window][::-1])[::-1]
        cost = least[window] + (contexts[end] - contexts[window]) * length[window] + launch * passes
        begin.append(first + int(cost.argmin()))  # the first of equals: fewer batches
        least[end] = cost.min()
    batches, end = [], len(order)
    while end:
        batches.append(order[begin[end]:end])
        end = begin[end]
    return batches[::-1]


def length_batches(lengths: Sequence[int], max_tokens: int, launch: int = LAUNCH) -> list[list[int]]:
    """Batches of rows of these lengths, at least one token each."""
    return partition([Rows(length) for length in lengths], max_tokens, launch)
