"""Groups of categories, such as MMLU's STEM: in the details, in a comparison, on the page, in the JSON."""

import json

import pytest

from evaluation.statistics.formulas import wilson_interval
from print_results import main
from report.page import write
from report.records import TaskFacts, load_results
from report.strata import groups_of
from tests.report.handmade import put

GROUPS = {"part 0": "sciences", "part 1": "arts", "part 2": "sciences"}


def grouped(folder, groups):
    facts = TaskFacts("choice", {"accuracy": "acc"}, 0.25, groups)
    for method, bits, flips in (("fp16", 16.0, 0), ("uniform", 4.25, 9)):
        put(folder, method, bits, -0.1, flips=flips, budget=None if method == "fp16" else 4.25, task=facts,
            dataset="mmlu")
    return folder


@pytest.fixture
def folder(tmp_path):
    return grouped(tmp_path / "results", GROUPS)


def test_a_group_pools_its_categories(folder):
    result = next(r for r in load_results(folder) if r.name == "uniform")
    # documents 9 to 63 of 96 are right; 32 are part 1
    assert {name: of.n for name, of in groups_of(result).items()} == {"arts": 32, "sciences": 64}
    arts = sum(i % 3 == 1 for i in range(9, 64))
    assert groups_of(result)["arts"].accuracy.value == arts / 32
    shown = groups_of(result)["arts"].accuracy
    assert (shown.low, shown.high) == wilson_interval(arts, 32)
    assert groups_of(result)["sciences"].accuracy.value == (55 - arts) / 64


def test_they_are_printed_with_the_details(folder, capsys):
    assert main(["--results_dir", str(folder), "--details", "--format", "markdown"]) == 0
    said = capsys.readouterr().out
    assert "mmlu: accuracy by group" in said and "mmlu: accuracy by category" in said
    assert "| sciences | 64 | 67.2 | 57.8 |" in said
    assert main(["--results_dir", str(folder), "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)["tables"][0]["datasets"]["mmlu"]
    assert {(one["method"], one["category"], one["n"]) for one in facts["groups"]} == {
        (method, group, n) for method in ("fp16", "uniform") for group, n in (("arts", 32), ("sciences", 64))}


def test_two_cells_are_compared_in_each_group(folder, capsys):
    asked = ["--results_dir", str(folder), "--compare", "fp16", "uniform"]
    assert main([*asked, "--format", "json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [(one["category"], one["n"], one["right_to_wrong"]) for one in groups] == [("arts", 32, 3),
                                                                                    ("sciences", 64, 6)]
    assert main([*asked, "--format", "markdown"]) == 0
    assert "by group" in capsys.readouterr().out


def test_two_cells_may_be_tested_for_equivalence(folder, capsys):
    asked = ["--results_dir", str(folder), "--compare", "fp16", "uniform", "--margin"]
    assert main([*asked, "5", "--format", "markdown"]) == 0
    said = capsys.readouterr().out
    assert "Equivalence within ±5 nats a token of gold LL, two one-sided t tests: p <0.001, shown" in said
    assert main([*asked, "0.0001", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["equivalence"]
    assert told["margin"] == 0.0001 and told["p"] > 0.05
    assert main([*asked, "0"]) == 2 and "above 0" in capsys.readouterr().err
    assert main(["--results_dir", str(folder), "--margin", "1"]) == 2 and "--compare" in capsys.readouterr().err


def test_the_page_shows_groups_in_place_of_their_categories(folder, tmp_path):
    text = write(folder, tmp_path / "page.html").read_text()
    assert "sciences (64)" in text and "part 0 (32)" not in text


def test_one_group_alone_is_the_whole_data_set(tmp_path, capsys):
    folder = grouped(tmp_path / "results", dict.fromkeys(GROUPS, "sciences"))
    assert all(groups_of(r) == {} for r in load_results(folder))
    assert main(["--results_dir", str(folder), "--details"]) == 0
    assert "by group" not in capsys.readouterr().out
