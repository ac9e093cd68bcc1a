"""Two rows over seeds: each seed's lead, the lead of all, and the test that a claim rests on."""

import csv
import io
import json

import numpy as np
import pytest

import print_results
from core.errors import UserError
from evaluation.statistics.formulas import holm, seeds_and_documents_interval
from report.records import ModelFacts, load_results, load_samples
from report.tables.seeds import leads
from tests.report.handmade import documents, put

NAMES = ("TaCQ", "THRIFT")


@pytest.fixture
def folder(tmp_path):
    """THRIFT is better by 0.5 on one data set, and with one seed of two on the other; a third has one seed of both."""
    for seed in (0, 1, 2):
        put(tmp_path, "TaCQ", 2.25, -1.0 - 0.1 * seed, seed=seed, budget=2.25)
        put(tmp_path, "THRIFT", 2.25, -0.5 - 0.1 * seed, seed=seed, budget=2.25)
    for seed, shift in ((0, -0.9), (1, -1.1)):
        put(tmp_path, "TaCQ", 2.25, -1.0, dataset="trivia_qa", seed=seed, budget=2.25)
        put(tmp_path, "THRIFT", 2.25, shift, dataset="trivia_qa", seed=seed, budget=2.25)
    put(tmp_path, "TaCQ", 2.25, -1.0, dataset="code_mmlu", seed=0, budget=2.25)
    put(tmp_path, "THRIFT", 2.25, -1.0, dataset="code_mmlu", seed=0, budget=2.25)
    put(tmp_path, "THRIFT", 2.25, 0.0, dataset="code_mmlu", seed=1, budget=2.25, error="out of memory")
    return tmp_path


def test_leads_are_those_of_the_documents(folder):
    results = load_results(folder)
    lines = {(line["dataset"], line["seed"]): line for line in leads(results, NAMES)}
    assert set(lines) == {("mmlu_pro", 0), ("mmlu_pro", 1), ("mmlu_pro", 2), ("mmlu_pro", None), ("trivia_qa", 0),
                          ("trivia_qa", 1), ("trivia_qa", None), ("code_mmlu", 0)}
    of = {(r.name, r.dataset, r.seed): np.array([s.gold_loglik for s in load_samples(r)]) for r in results if r.ok}
    apart = np.column_stack([of["THRIFT", "mmlu_pro", seed] - of["TaCQ", "mmlu_pro", seed] for seed in (0, 1, 2)])
    together = lines["mmlu_pro", None]
    assert together["value"] == pytest.approx(apart.mean()) and together["seeds"] == 3
    assert (together["low"], together["high"]) == pytest.approx(seeds_and_documents_interval(apart))
    assert together["second"] - together["first"] == pytest.approx(together["value"])
    for seed in (0, 1, 2):
        assert lines["mmlu_pro", seed]["value"] == pytest.approx(apart[:, seed].mean())
    assert together["p"] < 0.001 and lines["trivia_qa", None]["p"] > 0.05
    tested = [lines["mmlu_pro", None], lines["trivia_qa", None]]
    assert [line["p_holm"] for line in tested] == pytest.approx(holm([line["p"] for line in tested]))
    assert "p_holm" not in lines["mmlu_pro", 0]
    back = {(line["dataset"], line["seed"]): line for line in leads(results, NAMES[::-1])}
    assert back["mmlu_pro", None]["value"] == pytest.approx(-together["value"])


def test_the_command_prints_them_in_every_form(folder, capsys):
    run = ["--results_dir", str(folder), "--compare", *NAMES, "--over_seeds"]
    assert print_results.main(run) == 0
    shown = capsys.readouterr().out
    assert "THRIFT against TaCQ: gold log-likelihood" in shown and "all 3" in shown and "96 of mmlu_pro" in shown
    assert print_results.main([*run, "--format", "markdown"]) == 0
    assert "| mmlu_pro | all 3 |" in capsys.readouterr().out
    assert print_results.main([*run, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert print_results.main([*run, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == list(NAMES) and len(told["leads"]) == len(rows) == 8
    assert float(rows[0]["value"]) == told["leads"][0]["value"]
    assert print_results.main([*run, "--dataset", "mmlu_pro", "--seed", "0", "2"]) == 0
    shown = capsys.readouterr().out
    assert "all 2" in shown and "equal bits" not in shown


def test_another_metric_is_compared_as_well(folder, capsys):
    put(folder, "fp16", 16.0, 0.0, seed=9)
    results = load_results(folder)
    of = {(r.name, r.seed): load_samples(r) for r in results if r.ok and r.dataset == "mmlu_pro"}
    option = {key: np.array([sample.metric("gold_option") for sample in samples]) for key, samples in of.items()}
    run = ["--results_dir", str(folder), "--dataset", "mmlu_pro", "--compare", *NAMES, "--over_seeds", "--metric"]
    for metric, values in (("gold_option", option), ("kl", None)):
        line = leads([r for r in results if r.dataset == "mmlu_pro"], NAMES, metric)[-1]
        if values is None:
            base = [np.array(s.choice_logprobs) for s in of["fp16", 9]]
            values = {key: np.array([kl(b, np.array(s.choice_logprobs)) for b, s in zip(base, samples, strict=True)])
                      for key, samples in of.items()}
        apart = [(values["THRIFT", seed] - values["TaCQ", seed]).mean() for seed in (0, 1, 2)]
        assert line["value"] == pytest.approx(np.mean(apart))
        assert line["second"] == pytest.approx(np.mean([values["THRIFT", seed] for seed in (0, 1, 2)]))
        assert print_results.main([*run, metric]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert {"gold_option": "gold option among the options", "kl": "from full precision"}[metric] in shown
        assert ("┃ lead" in shown) == (metric != "kl")
    assert print_results.main([*run, "perplexity"]) == 2
    assert "--metric 'perplexity' is none that documents of mmlu_pro have; use one of:" in capsys.readouterr().err
    assert print_results.main([*run[:2], "--dataset", "trivia_qa", *run[4:], "kl"]) == 2
    assert "no result of full precision" in capsys.readouterr().err


def test_full_precision_of_another_model_or_of_other_documents_is_no_reference(folder, capsys):
    run = ["--results_dir", str(folder), "--dataset", "mmlu_pro", "--compare", *NAMES, "--over_seeds"]
    put(folder, "fp16", 16.0, 0.0, seed=8, samples=documents("mmlu_pro", 0.0, 8)[:48],
        stages={"evaluation": "e2"})
    assert print_results.main(run) == 0  # it is not in the way of who does not ask for it
    capsys.readouterr()
    put(folder, "fp16", 16.0, 0.3, seed=7, model=ModelFacts("another", "r2", "float32", "toy"))
    put(folder, "fp16", 16.0, 0.0, seed=9)
    mine = [r for r in load_results(folder) if r.dataset == "mmlu_pro"]
    own = leads([r for r in mine if r.name != "fp16" or r.seed == 9], NAMES, "kl")
    assert leads(mine, NAMES, "kl") == own and own[-1]["metric"] == "kl"


def kl(base, own) -> float:
    """Of two vectors of log-probabilities that are not normalised."""
    base, own = (x - np.log(np.exp(x).sum()) for x in (base, own))
    return float((np.exp(base) * (base - own)).sum())


def test_rows_of_other_bits_are_compared_and_said_to_be(tmp_path, capsys):
    for seed in (0, 1):
        put(tmp_path, "uniform", 2.75, -1.0, seed=seed, budget=2.75)
        put(tmp_path, "THRIFT-native", 2.25, -0.5 - 0.1 * seed, seed=seed)
    run = ["--results_dir", str(tmp_path), "--compare", "uniform", "THRIFT-native", "--over_seeds"]
    said = "Not at equal bits: uniform 2.750 stored bits a weight, THRIFT-native 2.250"
    assert print_results.main(run) == 0
    assert capsys.readouterr().out.count(said) == 1
    assert print_results.main([*run, "--format", "markdown"]) == 0
    assert f"- {said}" in capsys.readouterr().out


@pytest.mark.parametrize("more, said", [
    (["--dataset", "code_mmlu"], "--over_seeds finds no data set in which 'TaCQ' and 'THRIFT' share two seeds"),
    (["--margin", "0.1"], "--margin is of two cells and --over_seeds of two rows"),
    (["--all"], "--all is of two cells"), (["--html", "x.html"], "has no meaning with --html")])
def test_what_it_cannot_do_is_one_sentence(folder, capsys, more, said):
    assert print_results.main(["--results_dir", str(folder), "--compare", *NAMES, "--over_seeds", *more]) == 2
    assert said in capsys.readouterr().err


def test_it_needs_two_rows(folder, capsys):
    assert print_results.main(["--results_dir", str(folder), "--over_seeds"]) == 2
    assert "give --compare A B with it" in capsys.readouterr().err
    with pytest.raises(UserError, match="share two seeds"):
        leads(load_results(folder), ("TaCQ", "nobody"))
