"""Batches by length: against every possible cut, within the budget, and with little padding on real lengths."""

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.batching import LAUNCH, Rows, length_batches, partition


def cost(lengths, batches) -> int:
    return sum(len(batch) * max(lengths[i] for i in batch) + LAUNCH for batch in batches)


@given(st.lists(st.integers(1, 200), max_size=9), st.integers(1, 600))
def test_no_cut_of_the_sorted_rows_costs_less(lengths, budget):
    batches = length_batches(lengths, budget)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    assert [i for batch in batches for i in batch] == order
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget for batch in batches)
    if not lengths:
        return
    every = []
    for count in range(len(order)):
        for cuts in combinations(range(1, len(order)), count):
            edges = [0, *cuts, len(order)]
            cut = [order[a:b] for a, b in pairwise(edges)]
            if all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget for batch in cut):
                every.append(cost(lengths, cut))
    assert cost(lengths, batches) == min(every)


def test_little_padding_from_24_rows_on():
    """Lengths as MMLU-Pro's questions have them: log-normal, 60 to 900 tokens."""
    for seed in range(20):
        lengths = np.exp(np.random.default_rng(seed).normal(5.2, 0.6, 24)).astype(int).clip(60, 900).tolist()
        padded = sum(len(batch) * lengths[batch[0]] for batch in length_batches(lengths, 4096))
        assert padded <= 1.10 * sum(lengths)


def test_generated_tokens_share_their_passes():
    rows = [Rows(n, tails=1, tail=16, real=16, steps=16) for n in (90, 80, 40, 30)]
    assert partition(rows, 4096) == [[0, 1, 2, 3]]  # 16 more passes cost more than this padding
    assert partition([row._replace(steps=0) for row in rows], 4096) == [[0, 1], [2, 3]]
