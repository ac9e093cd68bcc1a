"""A metric over a number of the grid: which cells make a line, which are levels, and how it is shown."""

import csv
import io
import json

import numpy as np
import pytest

import print_results
from core.errors import UserError
from report.page import write
from report.records import load_results, load_samples
from report.tables.sweeps import axes, sweep
from tests.report.handmade import SETTINGS, put


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, "fp16", 16.0, 0.0, budget=None)
    put(tmp_path, "uniform", 4.25, -0.1)
    for bits, loss in ((8, 0.2), (4, 1.0)):
        for keep in (0.0, 0.1, 0.5):
            told = {"act_bits": bits} | ({"act_keep": keep} if keep else {})
            name = f"uniform[{','.join(f'{k}={v:g}' for k, v in told.items())}]"
            put(tmp_path, name, 4.25, -0.1 - loss * (1 - keep), brackets=told)
    for seed in (0, 1):
        put(tmp_path, "random[act_bits=4]", 4.25, -2.0 - seed, seed=seed, brackets={"act_bits": 4})
        put(tmp_path, "random[act_bits=4,act_keep=0.1]", 4.25, -1.5 - seed, seed=seed,
            brackets={"act_bits": 4, "act_keep": 0.1})
    return tmp_path


def test_lines_are_rows_that_differ_in_nothing_else(folder):
    results = load_results(folder)
    assert axes(results) == ["act_bits", "act_keep"]
    lines = {(line.label, line.level): line for line in sweep(results, "act_keep")}
    assert set(lines) == {("uniform[act_bits=8], 4.25 bits", False), ("uniform[act_bits=4], 4.25 bits", False),
                          ("random[act_bits=4], 4.25 bits", False), ("fp16", True), ("uniform, 4.25 bits", True)}
    four = lines["uniform[act_bits=4], 4.25 bits", False].points
    assert [p["axis"] for p in four] == [0.0, 0.1, 0.5] and four[0]["value"] < four[1]["value"] < four[2]["value"]
    drawn = lines["random[act_bits=4], 4.25 bits", False].points
    mine = {(r.seed, r.method.settings.get("act_keep", 0)): r.metrics["gold_loglik"] for r in results
            if r.name.startswith("random")}
    assert drawn[0]["value"] == pytest.approx((mine[0, 0].value + mine[1, 0].value) / 2) and drawn[0]["seeds"] == 2
    assert drawn[0]["low"] == mine[1, 0].low and drawn[0]["high"] == mine[0, 0].high
    bits = {line.label for line in sweep(results, "act_bits") if not line.level}
    assert "uniform[act_keep=0.5], 4.25 bits" in bits and "uniform, 4.25 bits" in bits


def test_a_change_is_paired_with_full_precision_document_by_document(folder):
    results = load_results(folder)
    of = {(r.name, r.seed): [s.gold_loglik for s in load_samples(r)] for r in results}
    lines = {(line.label, line.level): line for line in sweep(results, "act_keep", "loglik_change")}
    assert set(lines) == {(line.label, line.level) for line in sweep(results, "act_keep")}
    point = lines["random[act_bits=4], 4.25 bits", False].points[1]
    both = np.mean([of["random[act_bits=4,act_keep=0.1]", seed] for seed in (0, 1)], axis=0)
    differences = both - np.array(of["fp16", 0])
    assert point["value"] == pytest.approx(differences.mean()) and point["seeds"] == 2
    assert point["low"] <= point["value"] <= point["high"]
    assert lines["fp16", True].points[0]["value"] == lines["fp16", True].points[0]["high"] == 0
    with pytest.raises(UserError, match="--metric 'loglik_change' is none that these results have"):
        sweep([r for r in results if r.name != "fp16"], "act_keep", "loglik_change")


def test_a_row_at_a_single_share_is_a_level(tmp_path):
    put(tmp_path, "fp16", 16.0, 0.0, budget=None)
    put(tmp_path, "uniform[act_bits=8]", 4.25, -0.2, brackets={"act_bits": 8})
    put(tmp_path, "TAQ[act_bits=8]", 4.25, -0.2, brackets={"act_bits": 8})  # of no line
    for keep in (0.1, 0.5):
        put(tmp_path, f"uniform[act_bits=4,act_keep={keep:g}]", 4.25, -1 + keep,
            brackets={"act_bits": 4, "act_keep": keep})
    lines = sweep(load_results(tmp_path), "act_keep")
    assert [(line.label, line.level) for line in lines] == [
        ("uniform[act_bits=4], 4.25 bits", False), ("fp16", True), ("uniform[act_bits=8], 4.25 bits", True)]


def test_settings_of_the_grid_and_budgets_are_axes_too(tmp_path):
    put(tmp_path, "fp16", 16.0, 0.0, budget=None)
    for bits in (2.25, 3.25):
        for tokens in (100, 200):
            put(tmp_path, "TAQ", bits, -1 / bits, budget=bits, settings=SETTINGS | {"calib_tokens": tokens})
    results = load_results(tmp_path)
    assert axes(results) == ["avg_bits", "bits", "calib_tokens"]
    assert [line.label for line in sweep(results, "calib_tokens") if not line.level] == ["TAQ, 2.25 bits",
                                                                                         "TAQ, 3.25 bits"]
    assert [(line.label, len(line.points)) for line in sweep(results, "bits", "accuracy") if not line.level] == [
        ("TAQ", 2), ("TAQ", 2)]


@pytest.mark.parametrize("axis, metric, said", [
    ("act_kep", "gold_loglik", "--sweep 'act_kep' is no number in which these rows differ .did you mean 'act_keep'"),
    ("act_keep", "perplexity", "--metric 'perplexity' is none that these results have")])
def test_what_cannot_be_drawn_is_one_sentence(folder, axis, metric, said):
    with pytest.raises(UserError, match=said):
        sweep(load_results(folder), axis, metric)


def test_it_is_printed_drawn_and_written(folder, capsys):
    line = ["--results_dir", str(folder), "--sweep", "act_keep"]
    assert print_results.main(line) == 0
    assert "gold_loglik over act_keep" in capsys.readouterr().out
    assert print_results.main([*line, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 3 + 3 + 2 + 2 and {row["act_keep"] for row in rows} == {"0.0", "0.1", "0.5", ""}
    assert print_results.main([*line, "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 10
    assert print_results.main([*line, "--figure", str(folder / "s.svg")]) == 0
    drawn = (folder / "s.svg").read_text()
    assert "fp16" in drawn and drawn.count('class="mark"') == 3 + 3 + 2 and "var(--" not in drawn
    assert print_results.main([*line, "--figure", str(folder / "s.png")]) == 0
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")
    assert print_results.main([*line, "--details"]) == 2 and print_results.main(["--figure", "x.svg"]) == 2
    said = capsys.readouterr().err
    assert "--details has no meaning with --sweep" in said and "--figure is of --sweep AXIS" in said


def test_the_page_has_what_bits_of_activations_do(folder, tmp_path):
    page = write(str(folder), str(tmp_path / "page.html"), load_results(folder)).read_text()
    assert "What does act_keep do to gold_loglik?" in page and "What does act_bits do to gold_loglik?" in page
    assert 'href="#sweeps"' in page
    plain = [r for r in load_results(folder) if r.activations.plain]
    assert "Over the numbers of the grid" not in write(str(folder), str(tmp_path / "plain.html"), plain).read_text()
