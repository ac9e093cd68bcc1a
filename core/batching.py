"""Which rows run together: as few padded tokens as further forward passes are worth.

Rows stand longest first, and neighbours share a batch.  Of all such cuts within the token budget the one is taken that
makes

    Σ over batches of (padded tokens of contexts + LAUNCH · forward passes)

least, by dynamic programming; of equals the one with fewer batches.  A pure function of its arguments: the shape of a
batch moves log-probabilities in 16 bits, so batches belong to the identity of what is computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

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
    """Padded tokens of the rows after the contexts, at most."""
    return min(tails * tail, real + 2 * LAUNCH)


def partition(rows: Sequence[Rows], max_tokens: int) -> list[list[int]]:
    """Indices in batches of at most ``max_tokens`` padded tokens, longest first, stable; a larger row runs alone."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i].length)
    least, begin = [0], [0]  # of the first n rows: the cost, and where their last batch begins
    for end in range(1, len(order) + 1):
        best, start = None, end - 1
        contexts = tails = tail = real = steps = 0
        for at in range(end - 1, -1, -1):
            row = rows[order[at]]
            contexts, tails, real = contexts + row.contexts, tails + row.tails, real + row.real
            tail, steps, padded = max(tail, row.tail), max(steps, row.steps), contexts * row.length
            if at < end - 1 and padded + tails_padded(tails, tail, real) > max_tokens:
                break
            cost = least[at] + padded + LAUNCH * (1 + steps)
            if best is None or cost <= best:
                best, start = cost, at
        least.append(best)
        begin.append(start)
    batches, end = [], len(order)
    while end:
        batches.append(order[begin[end]:end])
        end = begin[end]
    return batches[::-1]


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Batches of rows of these lengths, at least one token each."""
    return partition([Rows(length) for length in lengths], max_tokens)
