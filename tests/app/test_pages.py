"""Every page on a real small results folder, and what it says of bad input."""

import json
import shutil
from pathlib import Path

import pytest

from app.views.results import VIEWS
from report.measured import LONGEST_QUESTION
from tests.app.conftest import SIZES, drawn, words
from tests.report.conftest import HOSTILE, hostile

PAGES = ("idea", "how", "live", "results", "compare")


def live_query(small, **more) -> dict:
    return {"live_model": small["model"], "task": "trivia_qa", "row": "TaCQ", "bits": "4.75",
            "calib": str(SIZES["calib_size"]), "questions": str(SIZES["eval_size"])} | more


def test_the_idea_takes_the_formula_apart_on_measured_weights(visit, small):
    page = visit("idea")
    record = json.loads(next(Path(small["results"], "linears").glob("*.json")).read_text())
    frame = page.dataframe[0].value
    assert frame["score"].tolist() == [one["score"] for one in record["examples"]]
    first = record["examples"][0]
    assert first["score"] == pytest.approx(abs(first["gradient"] * (first["weight"] - first["quantized"])
                                               * first["weight"]), rel=1e-5)
    assert "reported, not measured here" in words(page) and "Table 1" in words(page) and "2504.07389" in words(page)
    assert "How few weights hold the score?" in drawn(page)


def test_how_it_works_shows_the_linear_and_zooms(visit):
    whole = visit("how")
    for title in ("What happens to the weights?", "Which weights does the score keep?", "What does a bit cost"):
        assert title in drawn(whole)
    assert "rows 0–31, columns 0–63" in drawn(whole)
    part = whole.select_slider(key="window").set_value("32").run()
    assert "rows 0–31, columns 0–31" in drawn(part)
    moved = part.slider(key="column-32").set_value(16).run()
    assert "rows 0–31, columns 16–47" in drawn(moved) and not moved.exception


def test_the_live_page_shows_a_row_that_was_run(visit, small):
    page = visit("live", **live_query(small))
    said = words(page)
    assert f"--model {small['model']}" in said and "--avg_bits 4.75" in said and "Question by question" in said
    assert 4.74 < float(page.metric[0].value) <= 4.75
    lines = [json.loads(line) for name in ("fp16", "TaCQ")
             for line in next(Path(small["results"]).glob(f"*trivia_qa__{name}__*.jsonl")).read_text().splitlines()]
    assert len(lines) == 2 * SIZES["eval_size"]
    assert lines[0]["gold"] in said and (lines[0]["text"].strip() or lines[0]["answer"]) in said
    assert f"{lines[0]['gold_loglik']:.3f}" in said and f"{lines[SIZES['eval_size']]['gold_loglik']:.3f}" in said


def test_the_live_page_starts_nothing_by_itself(visit, small, tmp_path):
    page = visit("live", tmp_path / "new", **live_query(small))
    assert "no data" in words(page) and not (tmp_path / "new").exists()
    assert [button.label for button in page.button] == ["Run"]


@pytest.mark.parametrize(("question", "said"), [
    ("", "the question is empty; write one"),
    ("a" * 100_000, f"the question has 100,000 characters; at most {LONGEST_QUESTION:,} are read")])
def test_questions_that_cannot_be_asked(visit, small, question, said):
    page = visit("live", **live_query(small))
    page.text_area[0].set_value(question)
    page.button[-1].click().run()
    assert said in words(page).replace("\\", "") and not page.exception


def test_results_filters_by_the_address_and_keeps_files(visit, small):
    page = visit("results")
    assert "10 cells in this folder" in words(page)
    assert "mmlu_pro acc" in drawn(page) and "trivia_qa EM" in drawn(page)
    one = visit("results", dataset="mmlu_pro", details="true")
    assert "trivia_qa EM" not in drawn(one) and "mmlu_pro" in drawn(one)
    files = {"Files to keep": {"Tables as CSV", "Tables as LaTeX", "Tables as Markdown", "Tables as JSON",
                               "Report as HTML"},
             "Figures": {"This figure as SVG"}, "Two cells": {"This comparison as Markdown"}}
    for view, labels in files.items():
        assert {button.label for button in visit("results", view=view).get("download_button")} == labels


def test_two_cells_of_the_address_down_to_the_questions(visit, small):
    page = visit("results", view="Two cells")
    first, second = page.selectbox(key="first"), page.selectbox(key="second")
    assert first.value not in second.options and len(second.options) == 4
    other = second.set_value(second.options[-1]).run()
    assert "same answer in" in words(other) and other.selectbox(key="second").value == second.options[-1]


def test_every_figure_can_be_chosen_and_kept(visit, small):
    from xml.etree import ElementTree

    from report.figures.build import drawers
    from report.figures.files import standalone
    from report.figures.frames import load

    part = load(small["results"])[0]
    for words_, draw in drawers(part).items():
        page = visit("results", view="Figures", figure=words_)
        for figure in draw():
            assert figure.title in drawn(page).replace("&#39;", "'")
            if figure.svg:
                root = ElementTree.fromstring(standalone(figure))
                assert root.tag.endswith("svg") and "var(--" not in standalone(figure)


def test_compare_says_what_is_best_and_draws_value_against_bits(visit):
    page = visit("compare")
    assert "at most 4.75 stored bits" in words(page)
    assert "What does a stored bit buy?" in drawn(page) and "documents; they can show" in drawn(page)


@pytest.mark.parametrize("page", ("results", "compare"))
def test_folders_that_hold_nothing_say_so_in_one_sentence(visit, tmp_path, page):
    (tmp_path / "empty").mkdir()
    assert "no data" in words(visit(page, tmp_path / "empty"))
    missing = visit(page, tmp_path / "missing")
    assert len(missing.error) == 1 and "does not exist" in missing.error[0].value
    (tmp_path / "file").write_text("x")
    assert "is a file, not a folder" in words(visit(page, tmp_path / "file"))


@pytest.mark.parametrize("page", ("results", "compare", "live"))
def test_a_damaged_result_is_named(visit, small, tmp_path, page):
    shutil.copytree(small["results"], tmp_path / "copy")
    broken = next((tmp_path / "copy").glob("*.json"))
    broken.write_text("{")
    shown = visit(page, tmp_path / "copy", **(live_query(small) if page == "live" else {}))
    assert len(shown.error) == 1 and "does not read as JSON" in shown.error[0].value.replace("\\", "")
    broken.unlink()
    assert not visit(page, tmp_path / "copy", **(live_query(small) if page == "live" else {})).error


def test_a_damaged_linear_is_named(visit, small, tmp_path):
    shutil.copytree(small["results"], tmp_path / "copy")
    record = next((tmp_path / "copy" / "linears").glob("*.json"))
    record.write_text('{"schema": 1}')
    page = visit("idea", tmp_path / "copy", linear=record.stem)
    assert "is not as this version writes it" in words(page) and "no data" in words(page)


def test_a_damaged_result_stops_no_run(visit, small, tmp_path):
    (tmp_path / "zz.json").write_text("{")
    page = visit("live", tmp_path, **live_query(small))
    assert len(page.error) == 1 and [button.label for button in page.button] == ["Run"]


def test_an_address_that_asks_for_what_is_not_there_says_so(visit):
    page = visit("results", dataset="nope", figure="nope")
    assert "the address asks for dataset nope, which is not there" in words(page).replace("\\", "")
    assert "the address asks for bits abc" in words(visit("live", bits="abc"))


def test_words_of_a_linear_are_no_markup(visit, small, tmp_path):
    shutil.copytree(small["results"], tmp_path / "copy")
    record = next((tmp_path / "copy" / "linears").glob("*.json"))
    wants = {name: "![x](http://10.9.9.9/d.png)" for name in ("dataset", "linear", "revision", "dtype")}
    record.write_text(json.dumps(json.loads(record.read_text()) | wants))
    for name in ("idea", "how"):
        assert "![" not in words(visit(name, tmp_path / "copy"))


@pytest.mark.parametrize("page", PAGES)
def test_an_address_that_nobody_would_write(visit, page):
    odd = {"part": "99", "figure": "-1", "window": "7", "cell": "x", "linear": "../../etc", "method": "<b>",
           "bits": "abc", "calib": "0", "task": "$x$", "kept": "-3", "dataset": "none", "avg_bits": "x",
           "quantizer": "q"}
    visit(page, **odd)


def test_words_of_files_are_never_markup(visit, small, tmp_path):
    """Questions, answers and names that want to be HTML or Markdown are shown letter by letter."""
    wants = "<img src=x onerror=alert(1)> **bold** $x$ [a](b) :red[c]"
    shutil.copytree(small["results"], tmp_path / "copy")
    for path in (tmp_path / "copy" / "questions").glob("*.jsonl"):
        rows = [json.loads(line) | {"question": wants} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = visit("live", tmp_path / "copy", **live_query(small))
    assert wants in [code.value for code in page.code]
    assert not any("<img" in str(element.value) for kind in (page.markdown, page.caption) for element in kind)
    assert "<img" not in drawn(page)


def test_names_that_want_to_run_do_not(visit, small, tmp_path):
    copy = hostile(Path(small["results"]), tmp_path / "copy")
    for page, query in (("compare", {}), *(("results", {"view": view}) for view in VIEWS)):
        shown = visit(page, copy, **query)
        assert not any(name in drawn(shown) for name in HOSTILE if "<" in name), page
        said = [str(element.value) for kind in (shown.markdown, shown.caption, shown.error) for element in kind]
        assert not any(name in line for name in HOSTILE if "<" in name for line in said), page


def test_the_app_needs_no_torch():
    import subprocess
    import sys

    code = ("import sys, app.views.live, app.views.results, app.views.compare, app.views.idea, app.views.how\n"
            "import app.runner; from app import choice; choice.methods(); choice.tasks('x')\n"
            "sys.exit(1 if 'torch' in sys.modules or 'transformers' in sys.modules else 0)")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
