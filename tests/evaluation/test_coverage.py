"""What intervals and tests promise, simulated: 95 % intervals cover, 5 % tests reject 5 %, power is what it says."""

import numpy as np
import pytest

from core.sample import Sample
from evaluation.statistics import formulas as stats
from evaluation.statistics.paired import Panel
from evaluation.statistics.power import detectable_mean, detectable_rate

N = 100  # documents of a simulated run


def run_of(correct, loglik) -> list[Sample]:
    return [Sample(doc_id=str(i), prompt="", gold="A", text="", answer="A", correct=float(c), f1=None,
                   choice_logprobs=None, gold_loglik=float(v), n_prompt=1, n_new=0, truncated=False)
            for i, (c, v) in enumerate(zip(correct, loglik, strict=True))]


@pytest.mark.parametrize("rate", [0.1, 0.37, 0.6])
def test_wilson_covers(rate):
    drawn = np.random.default_rng(0).binomial(N, rate, 4000)
    bounds = {k: stats.wilson_interval(int(k), N) for k in set(drawn)}
    assert 0.93 <= np.mean([bounds[k][0] <= rate <= bounds[k][1] for k in drawn]) <= 0.97


@pytest.mark.parametrize("draw,mean", [(lambda rng, size: rng.normal(size=size), 0.0),
                                       (lambda rng, size: -rng.gamma(2.0, size=size), -2.0)],
                         ids=["normal", "skewed like log-likelihoods"])
def test_the_bootstrap_of_a_mean_covers(draw, mean):
    hits = []
    for seed in range(8):  # the columns of one call share their resamples
        rng = np.random.default_rng(seed)
        low, high = np.quantile(stats.resampled_means(draw(rng, (N, 500)), rng), [0.025, 0.975], axis=0)
        hits += list((low <= mean) & (mean <= high))
    assert 0.93 <= np.mean(hits) <= 0.97


@pytest.mark.parametrize("n,discordant,difference", [(100, 0.2, 0.1), (256, 0.03, 0.02), (1000, 0.01, 0.0),
                                                     (60, 0.2, 0.0)])
def test_the_interval_of_two_rates_covers_where_little_flips(n, discordant, difference):
    shares = [(discordant - difference) / 2, (discordant + difference) / 2, 1 - discordant]
    drawn = np.random.default_rng(n).multinomial(n, shares, 4000)
    spans = [stats.rate_difference_interval(int(b), int(c), n) for b, c, _ in drawn]
    assert 0.93 <= np.mean([low <= difference <= high for low, high in spans]) <= 0.97


def test_paired_differences_cover_what_is_true_of_both_metrics():
    """Runs that share the difficulty of their documents; the second is right 10 points oftener and 0.3 nats better."""
    found = {"accuracy": [], "gold_loglik": []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        hard = rng.normal(size=(100, N))
        pairs = [(run_of(u < 0.4, h), run_of(u + rng.choice([-0.3, 0.1], N) < 0.4, h + 0.3 + 0.5 * rng.normal(size=N)))
                 for u, h in zip(rng.random((100, N)), hard, strict=True)]
        panel = Panel([run for pair in pairs for run in pair], seed=seed)
        for name, true in (("accuracy", 0.1), ("gold_loglik", 0.3)):
            spans = [panel.difference(name, 2 * i, 2 * i + 1) for i in range(100)]
            found[name] += [s["low"] <= true <= s["high"] for s in spans]
    assert all(0.93 <= np.mean(hits) <= 0.97 for hits in found.values()), {k: np.mean(v) for k, v in found.items()}


def sign_flip_share(differences, seed: int, level: float = 0.05) -> float:
    """The share of columns that the sign-flip test rejects."""
    sums = stats.flipped_sums(differences, np.random.default_rng(seed))
    return float(np.mean([stats.sign_flip_p(d, lambda i=i: sums[:, i]) <= level for i, d in enumerate(differences.T)]))


@pytest.mark.parametrize("n", [10, 60])
def test_the_permutation_test_rejects_no_more_than_it_says(n):
    """Exact at 10 documents, drawn at 60; symmetric heavy tails, where a t test would be off."""
    rng = np.random.default_rng(n)
    shares = [sign_flip_share(rng.standard_t(2, size=(n, 500)), seed) for seed in range(6)]
    error = 3 * np.sqrt(0.05 * 0.95 / 3000)
    assert 0.05 - error - 0.01 <= np.mean(shares) <= 0.05 + error


def test_mcnemar_rejects_less_than_it_says():
    rng = np.random.default_rng(5)
    a, b = rng.random((3000, N)) < 0.3, rng.random((3000, N)) < 0.3
    share = np.mean([stats.mcnemar(x, y) <= 0.05 for x, y in zip(a, b, strict=True)])
    assert 0.02 <= share <= 0.05  # exact, so conservative, but not idle


@pytest.mark.parametrize("n,discordant", [(256, 0.1), (1000, 0.03), (60, 0.0)])
def test_the_power_line_of_accuracy(n, discordant):
    difference = detectable_rate(n, discordant)
    rate = max(discordant, difference)
    draws = np.random.default_rng(n).random((3000, n))
    worse, better = draws < (rate - difference) / 2, draws > 1 - (rate + difference) / 2
    found = np.mean([stats.mcnemar(w, b) <= 0.05 for w, b in zip(worse, better, strict=True)])
    assert 0.75 <= found <= 0.85


@pytest.mark.parametrize("n", [12, 100])
def test_the_power_line_of_log_likelihood(n):
    rng = np.random.default_rng(n)
    shares = [sign_flip_share(rng.normal(detectable_mean(n, 1.7), 1.7, size=(n, 500)), seed) for seed in range(4)]
    assert 0.75 <= np.mean(shares) <= 0.85


def test_holm_holds_the_whole_table_to_five_percent():
    rng = np.random.default_rng(9)
    wrong = np.mean([min(stats.holm(rng.random(12))) <= 0.05 for _ in range(3000)])
    assert 0.035 <= wrong <= 0.065
