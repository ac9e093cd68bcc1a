"""What a table says is true: which experiment it shows, which version of a cell, what its numbers and signs mean."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from print_results import main
from report.records import Question, TaskFacts, load_results, write_questions
from report.tables.groups import headings, missing
from report.tables.tables import group, tables
from report.text.lines import footnotes
from report.text.render import FORMATS, sheets_of, text
from report.text.sheets import overview
from report.text.terminal import show
from tests.report.handmade import SETTINGS, N, documents, put

DATA = Path(__file__).parent / "data" / "schema1"
OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"


def printed(*args, capsys) -> tuple[int, str, str]:
    code = main([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


# --- (a) which experiment

def test_two_quantizers_in_one_folder_print_under_two_titles(tmp_path):
    for quantizer in ("rtn", "gptq"):
        settings = SETTINGS | {"quantizer": quantizer}
        put(tmp_path, "fp16", 16.0, 0.0, budget=None, settings=settings)
        put(tmp_path, "TAQ", 4.25, -0.5, settings=settings)
    titles = [table.title for table in tables(tmp_path)]
    assert len(set(titles)) == 2 and sorted("gptq" in title for title in titles) == [False, True]
    assert all("groups of 32" in title and ("rtn" in title or "gptq" in title) for title in titles)


@pytest.mark.parametrize(("change", "says"), [
    ({"settings": SETTINGS | {"eval_size": 64}}, "eval_size 64"),
    ({"settings": SETTINGS | {"levels": [2, 4]}}, "levels 2 4"), ({"machine": "cuda:H100"}, "machine cuda:H100"),
    ({"settings": SETTINGS | {"group_size": 64}, "seed": 7}, "seeds 7"),
])
def test_what_sets_a_table_apart_is_in_its_title_and_its_rows(change, says, tmp_path, capsys):
    put(tmp_path, "random", 4.25, -0.5)
    put(tmp_path, "random", 4.25, -0.5, **change)
    found = tables(tmp_path)
    assert sum(says in table.title for table in found) == 1 and len({table.title for table in found}) == 2
    name = says.partition(" ")[0]
    rows = list(csv.DictReader(io.StringIO(printed("--results_dir", tmp_path, "--format", "csv", capsys=capsys)[1])))
    assert len({row[name] for row in rows}) == 2
    assert {"model", "avg_bits", "quantizer", "group_size", "table"} <= rows[0].keys()
    shown = json.loads(printed("--results_dir", tmp_path, "--format", "json", capsys=capsys)[1])["tables"]
    assert len({json.dumps(row[name]) for table in shown for row in table["rows"]}) == 2


def test_two_models_of_one_name_are_told_apart(tmp_path):
    put(tmp_path, "TAQ", 4.25, -0.5)
    model = load_results(tmp_path)[0].model
    for place in ("x", "y"):
        other = replace(model, name="checkpoint-100", revision=place, given=f"{place}/checkpoint-100")
        put(tmp_path, "TAQ", 4.25, -0.5, model=other)
    titles = [table.title for table in tables(tmp_path)]
    assert sorted(title.partition(" ")[0] for title in titles) == ["toy", "x/checkpoint-100", "y/checkpoint-100"]
    for place in ("z", "w"):  # the same folder at two times
        put(tmp_path, "TAQ", 4.25, -0.5, model=replace(model, name="m", revision=place * 16, given="m"))
    titles = {table.title for table in tables(tmp_path)}
    assert len(titles) == 5 and any("m zzzz" in title for title in titles)


def test_a_title_does_not_hang_on_what_else_is_shown(tmp_path, capsys):
    put(tmp_path, "TAQ", 4.25, -0.5)
    put(tmp_path, "TAQ", 4.25, -0.5, dataset="code_mmlu", settings=SETTINGS | {"eval_size": 64})
    whole = {table.title for table in tables(tmp_path)}
    out = printed("--results_dir", tmp_path, "--dataset", "code_mmlu", "--format", "markdown", capsys=capsys)[1]
    assert out.splitlines()[0].removeprefix("### ") in whole and "eval_size 64" in out.splitlines()[0]


def test_old_results_are_told_apart_too():
    """They were printed under one title, though their quantizer and loss mask differ."""
    titles = [table.title for table in tables(DATA)]
    assert len(set(titles)) == 2 and any("gptq" in title and "loss_mask all" in title for title in titles)
    assert headings([]) == [] and group([]) == []


def test_groups_of_two_sizes_in_one_table_are_said(tmp_path):
    put(tmp_path, "uniform", 4.25, -0.5)
    put(tmp_path, "TAQ", 4.25, -0.5)
    results = load_results(tmp_path)
    mixed = [replace(r, bits=replace(r.bits, group_size=64)) if r.name == "TAQ" else r for r in results]
    table = group(mixed)[0]
    assert "groups of 32 and 64" in table.title
    assert "mmlu_pro: rows differ in the size of their groups: uniform 32, TAQ 64" in table.notes
    assert not any("size of their groups" in note for note in group(results)[0].notes)


# --- (b) which version of a cell

def test_touching_files_changes_nothing(tmp_path):
    put(tmp_path, "fp16", 16.0, 0.0, budget=None, made=NEW, stages={"evaluation": "new"})
    put(tmp_path, "TAQ", 4.25, -1.0, made=OLD, stages={"evaluation": "old"})
    put(tmp_path, "TAQ", 4.24, -0.5, made=NEW, stages={"evaluation": "new"})
    put(tmp_path, "TAQ", 4.23, -0.7, made=OLD, settings=SETTINGS | {"eval_size": 9})
    before = [text(tables(tmp_path), kind, details=True) for kind in ("markdown", "csv", "json")]
    for i, path in enumerate(sorted(tmp_path.glob("*.json"))):
        for times in (10**9 + i, 10**9 - i):
            os.utime(path, (times, times))
            assert [text(tables(tmp_path), kind, details=True) for kind in ("markdown", "csv", "json")] == before
    first = tables(tmp_path)[0]
    assert [row["bits"] for row in first.rows] == [16.0, 4.24], "the newest table is first and shows the newest cells"
    assert "1 cells left out, they were asked other documents" in " ".join(first.notes)


def test_of_versions_of_unknown_age_the_one_with_most_cells_stands(tmp_path):
    for name in ("fp16", "uniform", "TAQ"):
        put(tmp_path, name, 4.25, -0.5, made="", stages={"evaluation": "b"})
    put(tmp_path, "random", 4.25, -0.5, made="", stages={"evaluation": "z"})
    assert [row["method"] for row in tables(tmp_path)[0].rows] == ["fp16", "uniform", "TAQ"]


# --- (c) failed cells

@pytest.mark.parametrize("name", ["0", "~"])
def test_a_stale_failed_record_beside_a_good_one_does_not_count(name, tmp_path):
    put(tmp_path, "TAQ", 4.25, -0.5)
    put(tmp_path, "random", 4.25, -0.5, error="out of memory")
    failed = next(tmp_path.glob("*random*.json"))
    plain = json.loads(failed.read_text())
    plain |= {"method": plain["method"] | {"name": "TAQ"}, "cell": name}
    (tmp_path / f"{name}.json").write_text(json.dumps(plain))
    results = load_results(tmp_path)
    for order in (results, results[::-1]):
        assert [(m["method"], m["error"]) for m in missing(order)] == [("random", "out of memory")]
    notes = tables(tmp_path)[0].notes
    assert not any("TAQ" in note for note in notes) and "FAILED: random on mmlu_pro, seed 0: out of memory" in notes


# --- (e) flags

@pytest.mark.parametrize("flags", [["--method", "TAQ"], ["--seed", "0"], ["--sort", "bits"], ["--details"],
                                   ["--format", "csv"],
                                   ["--format", "terminal"], ["--all"], ["--compare", "TAQ", "uniform"]])
def test_a_flag_without_effect_on_the_page_is_refused(flags, tmp_path, capsys):
    put(tmp_path, "TAQ", 4.25, -0.5)
    code, out, err = printed("--results_dir", tmp_path, "--html", tmp_path / "r.html", *flags, capsys=capsys)
    assert code == 2 and not out and err.count("\n") == 1
    assert err.startswith(f"error: {flags[0]} has no meaning with --html")
    assert not (tmp_path / "r.html").exists()


def test_format_html_names_the_page(tmp_path, capsys):
    code, _, err = printed("--results_dir", tmp_path, "--format", "html", capsys=capsys)
    assert code == 2 and "--html FILE" in err and err.count("\n") == 1 and "html" not in FORMATS


# --- (f) tolerance

@pytest.mark.parametrize(("tolerance", "same"), [(0.01, False), (0.05, True)])
def test_equal_bits_are_what_the_grid_says(tolerance, same, tmp_path, capsys):
    settings = SETTINGS | {"tolerance": tolerance}
    put(tmp_path, "uniform", 4.25, -1.0, settings=settings)
    put(tmp_path, "TAQ", 4.21, -0.5, settings=settings)
    row = tables(tmp_path)[0].rows[1]
    assert (row["u_equal_bits"], row["u_p_loglik"] is not None) == (same, same)
    out = printed("--results_dir", tmp_path, "--compare", "TAQ", "uniform", "--format", "json", capsys=capsys)[1]
    assert any("not at equal bits" in warning for warning in json.loads(out)["warnings"]) != same


# --- (h) versions

def test_rows_of_different_versions_are_said(tmp_path):
    put(tmp_path, "fp16", 16.0, 0.0, budget=None, versions={"torch": "2.13.0", "commit": "aaa", "numpy": "2"})
    put(tmp_path, "uniform", 4.25, -1.0, versions={"torch": "2.13.0", "commit": "bbb", "numpy": "2"})
    put(tmp_path, "TAQ", 4.25, -0.5, versions={"torch": "2.14.0", "commit": "bbb"})
    note = next(note for note in tables(tmp_path)[0].notes if "versions" in note)
    for words in ("commit bbb (2) and aaa (1)", "torch 2.13.0 (2) and 2.14.0 (1)", "numpy 2 (2) and unknown (1)"):
        assert words in note
    assert not any("versions" in note for table in tables(DATA) for note in table.notes)


# --- (i) seeds

def test_seeds_are_counted_on_each_data_set(tmp_path):
    for dataset in ("mmlu_pro", "code_mmlu"):
        put(tmp_path, "fp16", 16.0, 0.0, dataset=dataset, budget=None)
        put(tmp_path, "TAQ", 4.25, -0.3, dataset=dataset)
        for seed in (0, 1, 2) if dataset == "mmlu_pro" else (0,):
            put(tmp_path, "random", 4.25, -1.2, dataset=dataset, seed=seed)
    table = tables(tmp_path)[0]
    row = overview(table).set_index("method").loc["random (1–3 seeds)"]
    assert " sd " in row["mmlu_pro ΔLL"] and "±" not in row["mmlu_pro ΔLL"]
    assert "±" in row["code_mmlu ΔLL"] and " sd " not in row["code_mmlu ΔLL"]
    legend = footnotes(table, "markdown", False)[0]
    assert "± of one seed: half its 95 % bootstrap interval" in legend and "sd: over several seeds" in legend


# --- what a task measures

def test_the_chance_level_is_shown(tmp_path):
    put(tmp_path, "TAQ", 4.25, -0.5)
    task = TaskFacts("generate", {"accuracy": "EM", "f1": "F1"})
    put(tmp_path, "uniform", 4.25, -0.5, dataset="trivia_qa", task=task)
    assert "A guess is right in 25.0 % of mmlu_pro" in text(tables(tmp_path), "markdown")
    old = tables(DATA)[0]  # schema 1 did not say it; the options that were scored do
    lines = next(DATA.glob("*mmlu_pro*fp16*.jsonl")).read_text().splitlines()
    options = [len(json.loads(line)["choice_logprobs"]) for line in lines]
    assert old.facts["mmlu_pro"]["chance"] == pytest.approx(sum(1 / n for n in options) / len(options))
    assert old.facts["trivia_qa"]["chance"] is None


def own_metric(folder, method, budget, value):
    samples = [replace(s, correct=None, scores={"edits": value + i / N, "kept": float(i % 2)})
               for i, s in enumerate(documents("summaries", 0.0, 0))]
    put(folder, method, 16.0 if budget is None else 4.25, 0.0, dataset="summaries", budget=budget, samples=samples,
        task=TaskFacts("generate", {"edits": "edits", "kept": "facts kept"}))


def test_a_task_with_metrics_of_its_own_shows_them_and_no_empty_accuracy(tmp_path, capsys):
    own_metric(tmp_path, "fp16", None, 3.0)
    own_metric(tmp_path, "TAQ", 4.25, 2.0)
    own_metric(tmp_path, "uniform", 4.25, 1.0)
    table = tables(tmp_path)[0]
    assert list(overview(table).columns) == ["method", "bits", "summaries edits", "summaries LL", "summaries ΔLL"]
    assert overview(table).set_index("method").loc["TAQ", "summaries edits"] == f"{2 + 95 / 2 / 96:.3f}"
    assert [row["best_task_edits"] for row in table.rows] == ["", "", "best"]
    row = table.rows[2]
    assert row["d_task_edits"] == pytest.approx(-1.0)
    assert row["task_edits_low"] < row["task_edits"] < row["task_edits_high"]
    names = [name for one in sheets_of(table, True) for name in one.names]
    assert {"edits [95 %]", "Δ edits [95 %]", "facts kept [95 %]"} <= set(names)
    assert not any("accuracy" in name or name == "p" for name in names)
    for kind in FORMATS:
        assert printed("--results_dir", tmp_path, "--format", kind, "--details", capsys=capsys)[0] == 0
    code, out, _ = printed("--results_dir", tmp_path, "--compare", "fp16", "TAQ", "--format", "markdown", capsys=capsys)
    assert code == 0 and "| edits | 3.495 [" in out and "| facts kept |" in out and "flips" not in out


def test_small_categories_are_hidden_and_counted(tmp_path, capsys):
    sizes = {"large": 60, "middle": 27, "small": 9}
    names = [name for name, n in sizes.items() for _ in range(n)]
    samples = [replace(s, stratum=name) for s, name in zip(documents("mmlu_pro", 0.0, 0), names, strict=True)]
    put(tmp_path, "fp16", 16.0, 0.0, budget=None, samples=samples)
    wrong = [replace(s, answer="B", correct=0.0) if s.doc_id > "q070" else s for s in samples]
    put(tmp_path, "TAQ", 4.25, 0.0, samples=wrong)
    args = "--results_dir", tmp_path, "--details", "--format"
    out = printed(*args, "markdown", capsys=capsys)[1]
    assert "| large | 60 |" in out and "| small |" not in out
    assert out.count("mmlu_pro: 1 of 3 categories have fewer than 10 documents and are not shown") == 1
    shown = json.loads(printed(*args, "json", capsys=capsys)[1])["tables"][0]["datasets"]["mmlu_pro"]["strata"]
    assert {one["category"] for one in shown} == set(sizes)
    code, out, _ = printed("--results_dir", tmp_path, "--compare", "fp16", "TAQ", "--format", "markdown", capsys=capsys)
    assert code == 0 and "| small |" not in out and "1 of 3 categories" in out


# --- the questions themselves

@pytest.fixture
def pair(tmp_path):
    put(tmp_path, "fp16", 16.0, 0.0, budget=None)
    put(tmp_path, "TAQ", 4.25, -0.5, flips=3)
    return tmp_path


LONG = "Which of these\nis a prime | number, " + "or rather, which of them is not a product of smaller ones " * 3


def test_a_comparison_shows_the_questions(pair, capsys):
    rows = [Question(f"q{i:03d}", f"{LONG}({i})?", ("seven", "eight")) for i in range(N) if i != 2]
    write_questions(pair, "e1", rows)
    args = "--results_dir", pair, "--compare", "fp16", "TAQ", "--format"
    out = printed(*args, "markdown", capsys=capsys)[1]
    assert "| question |" in out and r"Which of these is a prime \| number" in out
    assert "(1)? |" in out and "| q002 |" in out
    assert "| B. eight |" in out and "| A. seven |" in out
    found = json.loads(printed(*args, "json", capsys=capsys)[1])["flipped"]
    assert [q["question"] for q in found] == [f"{LONG}(0)?", f"{LONG}(1)?", None]
    assert found[0]["options"] == ["seven", "eight"]
    code, out, _ = printed(*args[:-1], capsys=capsys)
    assert code == 0 and "Which of these is a prime | number" in " ".join(out.replace("│", " ").split())
    assert max(map(len, out.splitlines())) <= 140 and "q000" not in out


def test_without_questions_the_ids_are_shown(pair, capsys):
    out = printed("--results_dir", pair, "--compare", "fp16", "TAQ", "--format", "markdown", capsys=capsys)[1]
    assert "| document |" in out and "| q002 |" in out and "| B |" in out


def test_a_narrow_terminal_folds_questions(pair):
    from report.tables.pair import find_pair, story
    from report.text.terminal import show_story

    write_questions(pair, "e1", [Question(f"q{i:03d}", f"{LONG}({i})?") for i in range(N)])
    out = io.StringIO()
    show_story(story(*find_pair(load_results(pair), ["fp16", "TAQ"])), Console(file=out, width=80), False)
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert out.getvalue().count("Which of these is a prime") <= 3 * 2


def test_a_copied_folder_prints_the_same(tmp_path):
    """Nothing but the files' content counts."""
    for order, place in ((1, "a"), (-1, "b")):
        (tmp_path / place).mkdir()
        for path in sorted(DATA.iterdir())[::order]:
            shutil.copy(path, tmp_path / place)
    out = [io.StringIO(), io.StringIO()]
    for place, stream in zip("ab", out, strict=True):
        show(tables(tmp_path / place), Console(file=stream, width=140), details=True)
    assert out[0].getvalue() == out[1].getvalue()
