"""print_results.py on results made by hand: marks, families, unequal bits, gaps, filters, two cells side by side."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from print_results import main
from report.records import load_results
from report.tables.tables import tables
from report.text.lines import power_line, verdict
from report.text.render import FORMATS, text
from report.text.sheets import overview_sheet
from report.text.terminal import show
from tests.report.handmade import N, put

REPO, DATA = Path(__file__).resolve().parents[2], Path(__file__).parent / "data" / "schema1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """mmlu_pro is whole; on code_mmlu TAQ has no result and random failed; two seeds of random.

    One native row, one budgeted row of other bits.
    """
    root = tmp_path_factory.mktemp("made")
    for dataset in ("mmlu_pro", "code_mmlu"):
        put(root, "fp16", 16.0, 0.0, dataset=dataset, budget=None)
        put(root, "uniform", 4.249, -1.0, dataset=dataset, flips=20)
        put(root, "TaCQ", 4.245, -0.4, dataset=dataset, flips=6)
        put(root, "TaCQ-native", 4.6, -0.1, dataset=dataset, budget=None, native=True)
    put(root, "TAQ", 4.25, -0.402, flips=7)
    put(root, "odd", 4.188, -0.2)
    for seed in (0, 1):
        put(root, "random", 4.249, -1.2, seed=seed, flips=22)
        put(root, "random", 4.249, -1.2, dataset="code_mmlu", seed=seed, error="out of memory" if seed else None)
    return root


def printed(*args, capsys) -> tuple[int, str, str]:
    code = main([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


def row(table, method, seed=0, dataset="mmlu_pro"):
    frame = table.frame
    return frame[(frame["method"] == method) & (frame["seed"] == seed) & (frame["dataset"] == dataset)].iloc[0]


def test_best_and_tied_rows_are_marked_in_every_coat(folder):
    table = tables(folder)[0]
    names = ("TaCQ", "TAQ", "uniform", "random", "odd", "TaCQ-native", "fp16")
    marks = {name: row(table, name)["best_loglik"] for name in names}
    assert marks == dict.fromkeys(names, "") | {"TaCQ": "best", "TAQ": "tied"}
    best, tied = f"{row(table, 'TaCQ')['loglik']:.2f}", f"{row(table, 'TAQ')['loglik']:.2f}"
    out = io.StringIO()
    show([table], Console(file=out, width=140))
    assert f"{best}*" in out.getvalue() and f"{tied}~" in out.getvalue()
    assert "*: best at equal bits; ~: not told apart from it (paired sign-flip" in " ".join(out.getvalue().split())
    assert f"**{best}**" in text([table], "markdown") and f"| {tied} ~ " in text([table], "markdown")
    assert rf"\textbf{{{best}}}" in text([table], "latex") and rf"\underline{{{tied}}}" in text([table], "latex")
    assert "best_loglik" in text([table], "csv").splitlines()[0]
    found = json.loads(text([table], "json"))["tables"][0]["rows"]
    assert {r["method"]: r["best_loglik"] for r in found if r["dataset"] == "mmlu_pro"} == marks
    line = verdict(table)[0]
    assert line.startswith("mmlu_pro: TaCQ keeps the most") and line.endswith("not told apart from it: TAQ")


def test_colour_is_for_terminals_only(folder):
    plain, colour = io.StringIO(), io.StringIO()
    show(tables(folder), Console(file=plain, width=140))
    show(tables(folder), Console(file=colour, width=140, force_terminal=True, color_system="standard"))
    assert "\x1b[" not in plain.getvalue() and re.search(r"\x1b\[1;32m *-\d\.\d\d\*", colour.getvalue())


def test_families_and_p_values(folder):
    """Full precision: every other row; uniform: the rows at equal bits; the best: the budgeted methods but one."""
    table = tables(folder)[0]
    assert table.facts["mmlu_pro"]["families"] == {"fp16": 7, "uniform": 4, "best": 3}
    uniform = row(table, "uniform")
    assert uniform["p_raw"] == pytest.approx(2 * 0.5**20)  # 20 lost, none won
    assert uniform["p_raw"] < uniform["p"] <= 7 * uniform["p_raw"]
    assert (uniform["lost"], uniform["gained"]) == (20, 0) and np.isnan(uniform["u_loglik"])
    tacq = row(table, "TaCQ")
    assert tacq["u_accuracy"] == pytest.approx(14 / N) and tacq["u_p_raw"] == pytest.approx(2 * 0.5**14)
    line = "Holm over 7 rows against fp16, 4 against uniform, 6 pairs of rows at equal bits"
    assert line in text([table], "markdown", details=True)


def test_rows_of_other_bits_are_never_compared_silently(folder):
    table = tables(folder)[0]
    for name in ("odd", "TaCQ-native"):
        found = row(table, name)
        assert found["u_loglik"] > 0 and not found["u_equal_bits"] and np.isnan(found["u_p_loglik"])
    note = next(line for line in table.notes if line.startswith("mmlu_pro: uniform stores 4.249 bits"))
    assert "odd 4.188" in note and "TaCQ-native 4.600" in note and "not at equal bits" in note
    assert "4.188 ≠ 4.249" in text([table], "markdown", details=True)


def test_the_power_line_is_below_the_table(folder):
    table = tables(folder)[0]
    line = power_line(table, "mmlu_pro")
    assert line in text([table], "markdown")
    assert re.search(r"96 documents can show \d+\.\d points of accuracy, 0\.\d\d nats a token", line)


def test_what_is_missing_is_named(folder, capsys):
    code, out, _ = printed("--results_dir", folder, "--format", "markdown", capsys=capsys)
    assert code == 0
    assert "incomplete: 2 of the 16 cells" in out
    assert all(f"no result: {name} on code_mmlu, seed 0" in out for name in ("TAQ", "odd"))
    assert "FAILED: random on code_mmlu, seed 1: out of memory" in out
    found = json.loads(printed("--results_dir", folder, "--format", "json", capsys=capsys)[1])["tables"][0]["missing"]
    assert {(m["method"], m["dataset"], m["seed"]) for m in found} == {
        ("TAQ", "code_mmlu", 0), ("odd", "code_mmlu", 0), ("random", "code_mmlu", 1)}


def test_a_folder_with_failures_alone_is_said(tmp_path, capsys):
    put(tmp_path, "TAQ", 4.25, 0.0, error="the disk is full")
    for kind in FORMATS:
        code, out, err = printed("--results_dir", tmp_path, "--format", kind, "--details", capsys=capsys)
        assert code == 0 and not err and (kind == "csv" or "the disk is full" in out)


def test_a_grid_without_its_controls_says_so(tmp_path, capsys):
    put(tmp_path, "TAQ", 4.25, 0.0)
    code, out, _ = printed("--results_dir", tmp_path, "--format", "markdown", "--details", capsys=capsys)
    assert code == 0 and "fp16 has no result, so nothing is compared with it" in out and "uniform has no result" in out


@pytest.mark.parametrize("args", [[], ["--compare", "a", "b"], ["--format", "json"]])
def test_nothing_there_is_an_error(args, tmp_path, capsys):
    code, out, err = printed("--results_dir", tmp_path, *args, capsys=capsys)
    assert code == 2 and "holds no results; run run_taq_icml.py first" in err and not out


def test_of_two_cells_of_one_name_the_newer_stands(tmp_path):
    put(tmp_path, "fp16", 16.0, 0.0, budget=None)
    put(tmp_path, "TAQ", 4.25, -1.0, made="2026-01-01T00:00:00+00:00")
    put(tmp_path, "TAQ", 4.24, -0.5, made="2026-01-02T00:00:00+00:00")
    table = tables(tmp_path)[0]
    assert table.frame["bits"].tolist() == [16.0, 4.24]
    assert any("an older cell of TAQ left out" in line for line in table.notes)


def test_filters_choose_rows_and_leave_the_numbers(folder, capsys):
    def rows(*args):
        code, out, _ = printed("--results_dir", folder, "--format", "json", *args, capsys=capsys)
        assert code == 0
        return json.loads(out)["tables"][0]["rows"]

    whole = {(r["method"], r["dataset"], r["seed"]): r for r in rows()}
    for args, expected in ((["--method", "TaCQ", "random"], {"TaCQ", "random"}), (["--seed", "1"], {"random"}),
                           (["--dataset", "code_mmlu"], {"fp16", "uniform", "TaCQ", "TaCQ-native", "random"}),
                           (["--avg_bits", "4.25", "--model", "toy", "--run_type", "demo", "--method", "fp16"],
                            {"fp16"})):
        found = rows(*args)
        assert {r["method"] for r in found} == expected
        assert all(r == whole[r["method"], r["dataset"], r["seed"]] for r in found)  # p, marks and intervals too


@pytest.mark.parametrize("by,first,last", [("bits", "odd", "fp16"), ("-bits", "fp16", "odd"),
                                           ("-loglik", "fp16", "random (2 seeds)"),
                                           ("accuracy", "random (2 seeds)", None), ("method", "fp16", "uniform")])
def test_sorting(folder, by, first, last, capsys):
    args = "--results_dir", folder, "--format", "markdown", "--dataset", "mmlu_pro", "--sort", by
    code, out, _ = printed(*args, capsys=capsys)
    names = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")][2:]
    assert code == 0 and names[0] == first and (last is None or names[-1] == last)


@pytest.mark.parametrize("args,message", [
    (["--method", "tacq"], "did you mean 'TaCQ'"), (["--dataset", "trivia_qa"], "there are: code_mmlu, mmlu_pro"),
    (["--avg_bits", "3"], "there are: 4.25"), (["--seed", "7"], "there are: 0, 1"),
    (["--run_type", "full"], "there are: demo"), (["--sort", "acc"], "use one of: bits, accuracy, loglik, method"),
    (["--compare", "TaCQ", "nobody"], "'nobody' fits no cell"),
    (["--compare", "TaCQ", "uniform"], "fits 2 pairs of cells"),
    (["--compare", "random@1", "uniform", "--dataset", "code_mmlu"], "cells that failed (out of memory)"),
    (["--compare", "TaCQ", "TaCQ", "--dataset", "mmlu_pro"], "fits no two cells"),
    (["--compare", "TaCQ", "uniform", "--dataset", "mmlu_pro", "--format", "csv"], "terminal, markdown or json"),
    (["--compare", "TaCQ", "uniform", "--sort", "-bits"], "--sort has no meaning with --compare"),
    (["--all"], "give --compare A B with it"),
])
def test_what_does_not_fit_is_one_sentence(folder, args, message, capsys):
    code, out, err = printed("--results_dir", folder, *args, capsys=capsys)
    assert code == 2 and not out and message in err and err.startswith("error: ") and err.count("\n") == 1


def test_two_cells_side_by_side(folder, capsys):
    """14 of the 20 questions that uniform loses to full precision are right with TaCQ, and none the other way."""
    args = "--results_dir", folder, "--compare", "TaCQ", "uniform@0", "--dataset", "mmlu_pro", "--format", "json"
    code, out, _ = printed(*args, capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["flips"] == {"right_to_wrong": 14, "wrong_to_right": 0, "rate": 14 / N}
    assert found["both"] == {"right": 44, "wrong": 38} and found["agreement"] == 1 - 14 / N and found["warnings"] == []
    assert found["accuracy"]["value"] == pytest.approx(-14 / N) and found["mcnemar_p"] == pytest.approx(2 * 0.5**14)
    assert found["gold_loglik"]["low"] < -0.6 < found["gold_loglik"]["high"] + 0.1
    assert found["permutation_p"] == pytest.approx(1e-4)
    assert [q["doc_id"] for q in found["flipped"]] == [f"q{i:03d}" for i in range(6, 20)]
    assert {q["flip"] for q in found["flipped"]} == {"lost"}
    assert [s["n"] for s in found["strata"]] == [32, 32, 32] and sum(s["right_to_wrong"] for s in found["strata"]) == 14
    assert found["kl"]["low"] < found["kl"]["value"] < found["kl"]["high"] and found["power"]["n"] == N


def test_a_comparison_for_people(folder, capsys):
    code, out, _ = printed("--results_dir", folder, "--compare", "fp16", "odd", "--dataset", "mmlu_pro", capsys=capsys)
    flat = " ".join(out.split())
    assert code == 0 and "16.000 and 4.188 bits: not at equal bits" in flat and "fp16@0 → odd@0" in flat
    assert "questions that flipped" not in flat
    args = "--results_dir", folder, "--compare", "fp16", "random@1", "--dataset", "mmlu_pro", "--format", "markdown"
    code, out, _ = printed(*args, capsys=capsys)
    assert "questions that flipped: 20 of 22" in out and "2 more questions flipped; --all lists them" in out
    assert "q021" not in out
    code, out, _ = printed(*args, "--all", capsys=capsys)
    assert "questions that flipped: 22" in out and "| q021" in out


def test_cells_are_named_by_digest_and_by_file(folder, capsys):
    cells = {(r.name, r.dataset, r.seed): r for r in load_results(folder)}
    a, b = cells["random", "mmlu_pro", 0], cells["random", "mmlu_pro", 1]
    stem = f"toy__mmlu_pro__random__s1__{b.cell}"
    code, out, _ = printed("--results_dir", folder, "--compare", a.cell[:8], stem, "--format", "json", capsys=capsys)
    found = json.loads(out)
    shown = found["first"]["cell"], found["second"]["cell"], found["second"]["file"]
    assert code == 0 and shown == (a.cell, b.cell, f"{stem}.json")


def test_equal_seeds_go_together(folder, tmp_path, capsys):
    for seed in (0, 1):
        put(tmp_path, "uniform", 4.25, -1.0, seed=seed)
    put(tmp_path, "TaCQ", 4.25, -0.5, seed=1)
    code, out, _ = printed("--results_dir", tmp_path, "--compare", "TaCQ", "uniform", "--format", "json", capsys=capsys)
    assert code == 0 and json.loads(out)["second"]["seed"] == 1


def test_json_is_strict_and_unrounded(folder, capsys):
    _, out, _ = printed("--results_dir", folder, "--format", "json", capsys=capsys)
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    table = tables(folder)[0]
    assert found["schema"] == 1 and found["tables"][0]["notes"] == list(table.notes)
    assert found["tables"][0]["avg_bits"] == 4.25
    assert found["tables"][0]["rows"][0]["d_loglik"] is None
    assert [r["loglik"] for r in found["tables"][0]["rows"]] == table.frame["loglik"].tolist()


def test_seeds_show_mean_and_deviation_and_categories_are_shown(folder):
    table = tables(folder)[0]
    frame = overview_sheet(table).frame.set_index("method")
    assert " sd " in frame.loc["random (1–2 seeds)", "mmlu_pro LL"]
    out = text([table], "markdown", details=True)
    assert "### mmlu_pro: accuracy by category" in out and "part 2" in out


HEAVY = ("torch", "transformers", "pandas", "scipy.stats", "matplotlib", "datasets")


@pytest.mark.parametrize("flags", [*(["--format", kind, "--details"] for kind in FORMATS),
                                   ["--compare", "fp16", "TAQ"], ["--help"]])
def test_reading_results_imports_nothing_heavy(flags):
    """What is imported takes longer than all that is read and computed; benchmarks/report_speed.py measures it."""
    code = f"""import sys, print_results
try:
    status = print_results.main({["--results_dir", str(DATA), "--dataset", "mmlu_pro", *flags]!r})
except SystemExit as done:
    status = done.code
print(sorted(set({HEAVY!r}) & set(sys.modules)), status, file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0" and done.stdout
