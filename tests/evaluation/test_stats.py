"""Intervals, paired tests, power, KL and Holm against scipy, statsmodels and exact tables."""

import math
from functools import partial
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from core.errors import UserError
from core.sample import Sample
from evaluation.statistics import formulas as stats
from evaluation.statistics.paired import Panel, compare, strata
from evaluation.statistics.power import detectable_mean, detectable_rate, rate_power
from evaluation.statistics.summary import mean_task_metric
from evaluation.tasks.base import Task


def sample(doc_id, correct, loglik=-1.0, choices=None, **other):
    base = {"prompt": "", "gold": "A", "text": "", "answer": "A", "f1": None, "n_prompt": 5, "n_new": 0,
            "truncated": False}
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
    means = stats.bootstrap_means(values, np.random.default_rng(2))
    assert means.std(ddof=1) == pytest.approx(values.std(ddof=1) / math.sqrt(n), rel=0.05)
    low, high = stats.bootstrap_interval(values, np.random.default_rng(2))
    assert low < values.mean() < high


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
    result = compare(left, right)
    assert result["n"] == 2 and result["flips"]["wrong_to_right"] == 1
    assert result["gold_loglik"]["value"] == pytest.approx(0.25) and result["kl"]["value"] == pytest.approx(0.0)
    with pytest.raises(UserError, match="differ in 1 documents"):
        compare(left, right[:1])


def test_no_data_is_never_zero():
    result = compare([], [])
    assert result["accuracy"]["value"] is None and result["kl"] is None and result["mcnemar_p"] is None


@pytest.mark.parametrize("k,n", [(0, 7), (1, 7), (7, 7), (18, 256), (100, 256)])
def test_wilson_is_scipys(k, n):
    theirs = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    assert stats.wilson_interval(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("lost,won,rest", [(14, 3, 239), (0, 0, 30), (0, 9, 1)])
def test_mcnemar_is_statsmodels(lost, won, rest):
    a, b = [1] * lost + [0] * won + [1] * rest, [0] * lost + [1] * won + [1] * rest
    theirs = statsmodels_mcnemar([[rest, lost], [won, 0]], exact=True).pvalue
    assert stats.mcnemar(a, b) == pytest.approx(theirs, rel=1e-12)


def test_the_interval_of_a_rate_difference_by_hand():
    """12 lost, 4 won of 98: centre -8/100, s² = (17 - 64/100) / 100²."""
    half = 1.959963984540054 * math.sqrt(16.36) / 100
    assert stats.rate_difference_interval(12, 4, 98) == pytest.approx((-0.08 - half, -0.08 + half), abs=1e-12)
    low, high = stats.rate_difference_interval(0, 0, 98)
    assert low == -high and 0.015 < high < 0.025  # nothing flipped, and yet it is not known that nothing can
    assert all(math.isnan(x) for x in stats.rate_difference_interval(0, 0, 0))


def drawn(differences, seed=0):
    """The sums under random sign patterns, as a panel passes them."""
    return lambda: stats.flipped_sums(np.asarray(differences, dtype=float)[:, None], np.random.default_rng(seed))[:, 0]


def never():
    raise AssertionError("few non-zero differences are enumerated, not drawn")


FEW = ([0.5, -0.1, 0.3, 0.7, 0.2], [1, 1, -1, 1, 0, 0, 0, 1], [0.1] * 3 + [-0.1], [0, 0, 0], [2.0, 0.0],
       list(np.random.default_rng(4).normal(0.4, 1, 11)))


@pytest.mark.parametrize("differences", FEW)
def test_few_differences_are_enumerated_as_scipy_does(differences):
    theirs = scipy_stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert stats.sign_flip_p(differences, never) == pytest.approx(theirs, abs=1e-12)


def test_many_differences_are_drawn_near_the_exact_value():
    differences = np.random.default_rng(8).normal(0.45, 1, 16)
    exact = scipy_stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    error = 3 * math.sqrt(exact * (1 - exact) / stats.FLIPS)
    assert stats.sign_flip_p(differences, drawn(differences)) == pytest.approx(exact, abs=error)
    assert stats.sign_flip_p(np.ones(2048), drawn(np.ones(2048))) == 1 / (stats.FLIPS + 1)  # never 0
    assert math.isnan(stats.sign_flip_p([], never)) and math.isnan(stats.sign_flip_p([1.0, math.nan], never))


def test_on_right_and_wrong_the_sign_flip_test_is_mcnemar():
    a, b = np.array([1] * 9 + [0] * 2 + [1] * 20), np.array([0] * 9 + [1] * 2 + [1] * 20)
    assert stats.sign_flip_p(b - a, never) == pytest.approx(stats.mcnemar(a, b), rel=1e-12)


def test_columns_share_the_draws_of_one_column(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, 3))
    means = stats.resampled_means(values, np.random.default_rng(3))
    sums = stats.flipped_sums(values, np.random.default_rng(3))
    for i in range(3):
        assert np.allclose(means[:, i], stats.bootstrap_means(values[:, i], np.random.default_rng(3)), atol=1e-12)
    monkeypatch.setattr(stats, "_CHUNK", 50 * 8)  # pieces of eight: memory is bounded, the stream is the same
    assert np.allclose(stats.resampled_means(values, np.random.default_rng(3)), means, atol=1e-12)
    assert np.allclose(stats.flipped_sums(values, np.random.default_rng(3)), sums, atol=1e-12)


def test_the_bootstrap_interval_is_scipys():
    values = np.random.default_rng(6).gamma(2.0, size=300)
    theirs = scipy_stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000,
                                   rng=np.random.default_rng(1)).confidence_interval
    ours = stats.bootstrap_interval(values, np.random.default_rng(2), resamples=20000)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.005)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_statsmodels(seed):
    p = np.random.default_rng(seed).beta(0.3, 2, 15)
    assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def test_kl_is_scipys_over_documents_of_different_option_counts():
    rng = np.random.default_rng(2)
    left, right = ([tuple(rng.normal(-50, 9, size=n)) for n in (2, 10, 4)] for _ in range(2))
    shares = [[np.exp(np.array(values) - max(values)) for values in side] for side in (left, right)]
    expected = [scipy_stats.entropy(p, q) for p, q in zip(*shares)]
    assert stats.choice_kl(left, right) == pytest.approx(expected, rel=1e-9)


def test_mean_and_deviation_over_seeds():
    assert stats.mean_sd([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1)))
    assert stats.mean_sd([5.0]) == (5.0, None) and math.isnan(stats.mean_sd([])[0])


def runs(count, n=40, seed=0):
    rng = np.random.default_rng(seed)
    return [[sample(str(i), float(rng.random() < 0.5), rng.normal(), tuple(rng.normal(size=3)),
                    answer="ABC"[rng.integers(3)]) for i in range(n)] for _ in range(count)]


def test_a_panel_says_of_two_runs_what_they_alone_say():
    """Whatever other runs stand beside them, and in whatever order their documents come."""
    all_runs = runs(5)
    panel = Panel([all_runs[0], *(r[::-1] for r in all_runs[1:])], reference=0)
    alone = compare(all_runs[0], all_runs[3])
    beside = panel.compare(0, 3)
    assert beside == alone
    assert Panel(all_runs, reference=0).compare(1, 3)["kl"] is None  # KL is told from the reference on


def test_seeds_are_averaged_document_by_document():
    panel = Panel(runs(3))
    first, *others = panel.values["gold_loglik"].T
    by_hand = (others[0] + others[1]) / 2 - first
    assert panel.differences("gold_loglik", 0, (1, 2)) == pytest.approx(by_hand)
    found = panel.difference("gold_loglik", 0, (1, 2))
    assert found["low"] < by_hand.mean() < found["high"]
    assert panel.permutation_p("gold_loglik", (1,), (1,)) == 1.0


def test_agreement_is_of_answers_not_of_being_right():
    left = [sample(str(i), right, answer=answer) for i, (right, answer) in enumerate(
        [(0.0, "B"), (0.0, "C"), (1.0, None), (1.0, "A")])]
    right = [sample(str(i), right, answer=answer) for i, (right, answer) in enumerate(
        [(0.0, "B"), (0.0, "D"), (0.0, None), (1.0, "A")])]
    assert compare(left, right)["agreement"] == 0.75


def test_categories_carry_their_own_corrected_tests():
    def run(a, b):
        return ([sample(f"a{i}", float(a(i)), stratum="a") for i in range(6)]
                + [sample(f"b{i}", float(b(i)), stratum="b") for i in range(4)])

    left, right = run(lambda i: True, lambda i: i < 2), run(lambda i: False, lambda i: i == 2)
    a, b = strata(left, right)
    assert (a["category"], a["n"], a["first"], a["second"], a["right_to_wrong"]) == ("a", 6, 1.0, 0.0, 6)
    assert a["p_raw"] == pytest.approx(2 / 2**6) and a["p"] == pytest.approx(4 / 2**6)  # twice: two categories
    assert (b["right_to_wrong"], b["wrong_to_right"], b["p"]) == (2, 1, 1.0)


@pytest.mark.parametrize("n", [6, 60, 256])
def test_the_power_of_a_mean_is_statsmodels(n):
    theirs = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
    assert detectable_mean(n, 2.5) == pytest.approx(2.5 * theirs, rel=1e-5)


def test_too_few_documents_show_nothing():
    """Five sign patterns reach no p below 1/16, six reach 1/32."""
    assert detectable_mean(5, 1.0) is None and detectable_rate(5, 0.5) is None
    assert detectable_mean(6, 1.0) is not None and detectable_rate(6, 0.5) == pytest.approx(0.8 ** (1 / 6), abs=1e-6)


def test_the_power_of_a_rate_is_the_sum_over_all_tables():
    n, discordant, difference = 24, 0.4, 0.25
    share, total = (discordant - difference) / 2, 0.0
    for b, c in product(range(n + 1), range(n + 1)):
        if b + c <= n and b + c > 0 and scipy_stats.binomtest(b, b + c, 0.5).pvalue <= 0.05:
            total += scipy_stats.multinomial.pmf([b, c, n - b - c], n, [share, share + difference, 1 - discordant])
    assert rate_power(n, discordant, difference) == pytest.approx(total, rel=1e-9)


def test_the_power_line_takes_the_median_pair():
    panel = Panel(runs(4, n=64))
    found = panel.detectable([(0, 1), (0, 2), (0, 3)])
    rates = sorted(np.mean(panel.differences("accuracy", 0, i) != 0) for i in (1, 2, 3))
    assert found["discordant"] == rates[1] and found["accuracy"] == detectable_rate(64, rates[1])
    assert panel.detectable([]) is None


@pytest.mark.parametrize("n", [6, 64, 300])
@pytest.mark.parametrize("discordant", [0.0, 0.1, 1.0])
def test_the_power_of_a_rate_is_what_scipys_distributions_give(n, discordant):
    m = np.arange(n + 1)
    k = scipy_stats.binom.ppf(0.025, m, 0.5)
    most = np.where(2 * scipy_stats.binom.cdf(k, m, 0.5) <= 0.05, k, k - 1)
    for difference in (0.01, 0.2, 0.9):
        rate = max(discordant, difference)
        share = (rate + difference) / (2 * rate)
        rejects = scipy_stats.binom.cdf(most, m, 1 - share) + scipy_stats.binom.cdf(most, m, share)
        total = np.sum(scipy_stats.binom.pmf(m, n, rate) * rejects)
        assert rate_power(n, discordant, difference) == pytest.approx(total, abs=1e-12)
    if (found := detectable_rate(n, discordant)) is not None:
        assert rate_power(n, discordant, found) == pytest.approx(0.8, abs=1e-9)


def test_a_task_without_right_and_wrong_is_compared_by_its_own_metrics():
    def run(shift):
        return [sample(str(i), None, -1.0 - shift, scores={"edits": i + shift, "seen": float(i % 2)})
                for i in range(12)]

    panel = Panel([run(0.0), run(2.0)], reference=0)
    found = panel.compare(0, 1)
    assert found["edits"] == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0}) and found["seen"]["value"] == 0.0
    assert found["flips"] is None and found["mcnemar_p"] is None and "accuracy" not in found and "f1" not in found
    assert panel.detectable([(0, 1)])["accuracy"] is None and strata(run(0.0), run(1.0)) == []
    assert panel.permutation_p("edits", 0, 1) == pytest.approx(2 / 2**12)
    some = [sample("1", 1.0, scores={"edits": 1.0}), sample("2", 1.0)]
    assert set(Panel([some]).values) == {"accuracy", "gold_loglik"}, "a metric that a document lacks is not compared"


def test_the_score_of_a_task_is_made_of_what_it_measures():
    score = partial(Task.score, None)
    assert mean_task_metric([sample("1", 1.0, -2.0), sample("2", 0.0, -4.0)], score) == (0.5, -3.0)
    assert score(sample("1", 1.0, f1=0.5)) == 0.75
    assert score(sample("1", None, scores={"a": 0.25, "b": 0.75})) == 0.5


def test_two_one_sided_tests_show_equivalence_and_nothing_else():
    """Against scipy's t tests; differences of 0, of half the margin and beyond it; and its error rate at the margin."""
    rng = np.random.default_rng(0)
    d = rng.normal(0.01, 0.3, 400)
    want = max(scipy_stats.ttest_1samp(d, -0.05, alternative="greater").pvalue,
               scipy_stats.ttest_1samp(d, 0.05, alternative="less").pvalue)
    assert stats.equivalence_p(d, 0.05) == pytest.approx(want, rel=1e-9)
    assert stats.equivalence_p(np.zeros(9), 0.05) == 0.0 and stats.equivalence_p(np.full(9, 0.06), 0.05) == 1.0
    assert np.isnan(stats.equivalence_p([0.1], 0.05))
    near, far = rng.normal(0, 0.1, 500), rng.normal(0.2, 0.1, 500)
    assert stats.equivalence_p(near, 0.05) < 1e-6 < 0.5 < stats.equivalence_p(far, 0.05)
    false = sum(stats.equivalence_p(rng.normal(0.05, 0.3, 200), 0.05) < 0.05 for _ in range(400))
    assert false / 400 < 0.08
