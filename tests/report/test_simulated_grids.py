"""Statistics by simulation: what is planted in made-up grids is found, and what is not planted is not."""

from dataclasses import replace

import numpy as np
import pytest

from core.sample import Sample
from evaluation.statistics.formulas import seeds_and_documents_interval
from evaluation.statistics.paired import Panel
from evaluation.statistics.summary import summarise
from report.records import Bits, MethodFacts, ModelFacts, Result, TaskFacts
from report.tables.comparison import compare_dataset

GRIDS, DOCUMENTS = 200, 4096


class Drawn:
    """Samples of made-up cells, in place of files."""

    def __init__(self, samples: dict[str, list[Sample]]):
        self.samples = samples

    def of(self, result: Result) -> list[Sample]:
        return self.samples[result.name]


def run(correct: np.ndarray, loglik: np.ndarray) -> list[Sample]:
    return [Sample(doc_id=str(i), prompt="", gold="A", text="", answer="A" if right else "B", correct=float(right),
                   f1=None, choice_logprobs=None, gold_loglik=float(value), n_prompt=1, n_new=0, truncated=False)
            for i, (right, value) in enumerate(zip(correct, loglik, strict=True))]


def cell(name: str, samples: list[Sample]) -> Result:
    bits = 16.0 if name == "fp16" else 4.25
    return Result(cell=name, model=ModelFacts("toy", "r", "float32", "toy"), dataset="mmlu_pro",
                  avg_bits=None if name == "fp16" else 4.25, method=MethodFacts(name, quantizer="rtn"), seed=0,
                  run_type="demo", settings={"tolerance": 0.01}, machine="cpu", versions={}, status="ok", error=None,
                  n=len(samples), metrics=summarise(samples[:2]), bits=Bits(bits, bits + 1, group_size=32),
                  scoring="letter", stages={"evaluation": "e"}, task=TaskFacts("choice", {"accuracy": "acc"}, 0.25))


def grid(rng: np.random.Generator) -> dict[str, list[Sample]]:
    """Full precision; ``uniform`` and two methods like it, whose answers flip at random but lose nothing (a no-op); and
    ``harmful``, which loses one point of accuracy and as much log-likelihood as a tenth of the documents' spread.
    """
    right = rng.random(DOCUMENTS) < 0.6
    loglik = rng.normal(-2, 1, DOCUMENTS)

    def quantized(lost: float, gained: float, shift: float) -> list[Sample]:
        draw = rng.random(DOCUMENTS)
        answers = np.where(right, draw >= lost / 0.6, draw < gained / 0.4)
        return run(answers, loglik + shift + rng.normal(0, 0.3, DOCUMENTS))

    return {"fp16": run(right, loglik), **{name: quantized(0.004, 0.004, 0.0) for name in ("uniform", "TAQ", "TaCQ")},
            "harmful": quantized(0.0115, 0.0015, -0.03)}


@pytest.mark.slow
def test_a_planted_no_op_and_a_planted_loss_of_one_point_are_told_right():
    """Of 200 grids, at least 95 %: the loss is significant against full precision in accuracy and log-likelihood, the
    no-op in neither; in the ranking the loss is not tied with the best, and all three no-ops are.
    """
    rng = np.random.default_rng(0)
    loss, no_op, ranked, tied = 0, 0, 0, 0
    for _ in range(GRIDS):
        samples = grid(rng)
        rows, _, _ = compare_dataset([cell(name, of) for name, of in samples.items()], Drawn(samples))
        by_name = {row["method"]: row for row in rows}
        loss += by_name["harmful"]["p"] < 0.05 and by_name["harmful"]["p_loglik"] < 0.05
        no_op += by_name["TAQ"]["p"] >= 0.05 and by_name["TAQ"]["p_loglik"] >= 0.05
        ranked += by_name["harmful"]["best_loglik"] == ""
        tied += all(by_name[name]["best_loglik"] for name in ("uniform", "TAQ", "TaCQ"))
    shares = {"loss": loss / GRIDS, "no-op": no_op / GRIDS, "loss not tied with the best": ranked / GRIDS,
              "no-ops tied with the best": tied / GRIDS}
    print(shares)
    assert min(shares.values()) >= 0.95, shares


def test_equal_methods_are_rarely_told_from_the_best_of_them():
    """Eight equal methods: the best is chosen from the same documents, so its rivals alone would be told apart from it
    in 8 to 13 % of grids; over all pairs it is fewer than 6 %.
    """
    rng, wrong, grids = np.random.default_rng(1), 0, 150
    names = [f"m{i}" for i in range(8)]
    for _ in range(grids):
        base = rng.normal(-2, 1, 60)
        samples = {name: run(np.ones(60), base + rng.normal(0, 0.3, 60)) for name in names}
        rows, _, _ = compare_dataset([cell(name, of) for name, of in samples.items()], Drawn(samples))
        wrong += any(row["best_loglik"] == "" for row in rows)
    assert wrong / grids < 0.06, wrong / grids


def test_the_interval_over_seeds_and_documents_covers_what_it_says():
    """Three seeds whose leads differ: an interval over documents alone misses the method's own lead far too often."""
    rng, hits, alone, tries = np.random.default_rng(2), 0, 0, 400
    for _ in range(tries):
        by_seed, by_document = rng.normal(0.3, 0.25, 3), rng.normal(0, 1, 200)
        differences = by_seed[None, :] + by_document[:, None] + rng.normal(0, 0.5, (200, 3))
        low, high = seeds_and_documents_interval(differences)
        hits += low <= 0.3 <= high
        half = 1.96 * differences.mean(1).std(ddof=1) / np.sqrt(200)
        alone += abs(differences.mean() - 0.3) <= half
    assert 0.93 <= hits / tries <= 0.99 and alone / tries < 0.85, (hits / tries, alone / tries)


def test_the_lead_over_seeds_is_that_of_the_pairs():
    rng = np.random.default_rng(3)
    runs = [run(np.ones(50), rng.normal(size=50)) for _ in range(4)]
    panel = Panel(runs)
    told = panel.over_seeds("gold_loglik", [0, 1], [2, 3])
    values = panel.values["gold_loglik"]
    assert told["value"] == pytest.approx((values[:, 2] - values[:, 0] + values[:, 3] - values[:, 1]).mean() / 2)
    assert told["low"] < told["value"] < told["high"]


def test_the_gold_option_among_the_options():
    sample = replace(run(np.ones(1), np.zeros(1))[0], gold="B", choice_logprobs=(-3.0, -1.0, -2.0))
    shares = np.exp([-3.0, -1.0, -2.0])
    assert sample.gold_option == pytest.approx(np.log(shares[1] / shares.sum()))
    assert replace(sample, choice_logprobs=(-1003.0, -1001.0, -1002.0)).gold_option == pytest.approx(sample.gold_option)
    assert replace(sample, gold="Paris").gold_option is None
    assert replace(sample, choice_logprobs=None).gold_option is None
