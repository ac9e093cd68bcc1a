"""Intervals, paired tests, KL and Holm against closed forms."""

import math
from itertools import product

import numpy as np
import pytest

from core.errors import UserError
from core.types import Sample
from evaluation import stats


def sample(doc_id, correct, loglik=-1.0, choices=None, **other):
    base = {"prompt": "", "gold": "A", "text": "", "answer": "A", "f1": None, "n_prompt": 5, "n_new": 0, "truncated": False}
    return Sample(doc_id=doc_id, correct=correct, gold_loglik=loglik, choice_logprobs=choices, **(base | other))


def test_wilson_known_values():
    low, high = stats.wilson_interval(0, 10)
    assert low == 0.0 and high == pytest.approx(0.27753, abs=1e-5)
    low, high = stats.wilson_interval(5, 10)
    assert (low, high) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert all(math.isnan(x) for x in stats.wilson_interval(0, 0))


@pytest.mark.parametrize("b,c", list(product([0, 1, 3, 8], [0, 2, 9])))
def test_mcnemar_is_the_exact_binomial(b, c):
    a = np.array([1] * b + [0] * c + [1, 0] * 5)
    other = np.array([0] * b + [1] * c + [1, 0] * 5)
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert stats.mcnemar(a, other) == pytest.approx(min(1.0, 2 * tail), rel=1e-12)


def test_mcnemar_without_data_is_nan():
    assert math.isnan(stats.mcnemar([], []))


@pytest.mark.parametrize("n", [64, 2048])
def test_bootstrap_se_within_five_percent(n):
    values = np.random.default_rng(1).normal(size=n)
    result = stats.paired_difference(np.zeros(n), values, np.random.default_rng(2))
    assert result["se"] == pytest.approx(values.std(ddof=1) / math.sqrt(n), rel=0.05)
    assert result["low"] < result["value"] < result["high"]


def test_bootstrap_is_seeded_and_bounded_in_memory(monkeypatch):
    values = np.arange(50.0)
    whole = stats.bootstrap_means(values, np.random.default_rng(3))
    assert np.array_equal(whole, stats.bootstrap_means(values, np.random.default_rng(3)))
    monkeypatch.setattr(stats, "_CHUNK", 500)
    assert np.array_equal(whole, stats.bootstrap_means(values, np.random.default_rng(3)))  # chunks draw the same stream


def test_flips():
    result = stats.flips([1, 1, 0, 0, 1], [0, 1, 1, 0, 0])
    assert result == {"right_to_wrong": 2, "wrong_to_right": 1, "rate": 0.6}
    assert stats.flips([], [])["rate"] is None


def test_choice_kl_closed_form_and_shift_invariance():
    p, q = np.array([0.7, 0.3]), np.array([0.5, 0.5])
    expected = float(np.sum(p * np.log(p / q)))
    assert stats.choice_kl([np.log(p) - 3], [np.log(q) + 2])[0] == pytest.approx(expected, abs=1e-12)
    assert stats.choice_kl([np.log(p)], [np.log(p)])[0] == 0.0
    with pytest.raises(UserError, match="2 and 3 options"):
        stats.choice_kl([[0, 0]], [[0, 0, 0]])


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    with_gap = stats.holm([0.01, math.nan, 0.03])
    assert with_gap[0] == pytest.approx(0.02) and math.isnan(with_gap[1]) and with_gap[2] == pytest.approx(0.03)
    assert stats.holm([]) == []


def test_compare_pairs_by_id_and_refuses_other_documents():
    left = [sample("a", 1.0, -1.0, (-1.0, -2.0)), sample("b", 0.0, -2.0, (-1.0, -1.0))]
    right = [sample("b", 1.0, -1.5, (-1.0, -1.0)), sample("a", 1.0, -1.0, (-1.0, -2.0))]
    result = stats.compare(left, right)
    assert result["n"] == 2 and result["flips"]["wrong_to_right"] == 1
    assert result["gold_loglik"]["value"] == pytest.approx(0.25) and result["kl"]["value"] == pytest.approx(0.0)
    with pytest.raises(UserError, match="differ in 1 documents"):
        stats.compare(left, right[:1])


def test_no_data_is_never_zero():
    result = stats.compare([], [])
    assert result["accuracy"]["value"] is None and result["kl"] is None and result["mcnemar_p"] is None
