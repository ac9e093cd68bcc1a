"""Data sets that calibrate together: what is read, that a model is solved once for all of them, and what cannot be."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.errors import UserError
from evaluation.calibration.mixture import calib_digest
from evaluation.tasks import get_tasks
from harness.cli.main import main
from harness.presets import build_grid, row_grid
from harness.stages.joint import _in_turns
from report.records import load_results
from streams.answers import chosen
from tests.harness.bench import case_of

THREE = ("trivia_qa", "mmlu_pro", "code_mmlu")
JOINT = "+".join(THREE)
SIZES = dict(calib_size=12, eval_size=8, calib_tokens=900, device="cpu", threads=1, avg_bits=(4.75,), max_new_tokens=4)


@pytest.fixture
def where(tiny_folder, tmp_path) -> dict:
    return SIZES | dict(models=(str(tiny_folder),), cache_dir=str(tmp_path / "c"), results_dir=str(tmp_path / "r"))


def test_each_data_set_has_an_equal_share_of_the_tokens_in_turns(where):
    case = case_of("uniform", methods=("uniform",), quantizer="gptq", datasets=("mmlu_pro",), calib_dataset=JOINT,
                   **where)
    alone = {name: case_of("uniform", methods=("uniform",), quantizer="gptq", datasets=("mmlu_pro",),
                           calib_dataset=name, **where | {"calib_tokens": 300}).solver_calib for name in THREE}
    joint = case.solver_calib
    assert joint.task == JOINT and [name.split("/")[0] for name in joint.doc_ids[:4]] == [*THREE, THREE[0]]
    for name, own in alone.items():
        ours = [(doc.partition("/")[2], *tokens) for doc, tokens in zip(joint.doc_ids, joint.tokens)
                if doc.startswith(f"{name}/")]
        assert ours == [(doc, *tokens) for doc, tokens in zip(own.doc_ids, own.tokens)]
        assert 0 < sum(map(len, own.tokens)) <= 300
    prompts = case.prompts
    assert [name.split("/")[0] for name in prompts.doc_ids[:3]] == [*THREE] and len(prompts.tokens) == 3 * 12


def test_general_text_is_read_once(where, shared):
    """Alone as of one data set, in a mix after the worked documents with the tokens that are left."""
    data = where | {"data_dir": str(shared / "datasets"), "calib_window": 64}
    one, all_three, mixed, alone, text = (
        case_of("uniform", methods=("uniform",), quantizer="gptq", datasets=("mmlu_pro",), calib_dataset=names,
                calib=calib, **data | {"calib_tokens": tokens}).solver_calib
        for names, calib, tokens in (("mmlu_pro", "c4", 900), (JOINT, "c4", 900), (JOINT, "mix:0.5", 900),
                                     (JOINT, "task", 450), ("mmlu_pro", "c4", 450)))
    assert calib_digest(one) == calib_digest(all_three)
    assert mixed.task == f"{JOINT}+c4" and mixed.mixed and not alone.mixed
    assert mixed.doc_ids == alone.doc_ids + text.doc_ids and len(set(mixed.doc_ids)) == len(mixed.doc_ids)
    assert calib_digest(replace(mixed, mixed=False)) == calib_digest(replace(
        alone, doc_ids=mixed.doc_ids, tokens=alone.tokens + text.tokens, loss_mask=alone.loss_mask + text.loss_mask))


def test_scorers_that_read_answers_read_some_of_each(where):
    case = case_of("LIG", methods=("LIG",), datasets=("mmlu_pro",), calib_dataset=JOINT,
                   **where | {"calib_tokens": 20000})
    context = SimpleNamespace(answers=case.answers, param=lambda name: 12)
    docs = [case.answers.doc_ids[i].partition("/")[0] for i in chosen(context, SimpleNamespace(name="lig_docs"))]
    assert docs == [*THREE] * 4


def test_a_file_may_have_a_plus_in_its_path(where, tmp_path):
    path = tmp_path / "a+b.txt"
    path.write_text("one line of text\n" * 400)
    case = case_of("fp16", f"file:{path}", methods=("uniform",), datasets=(f"file:{path}",), ppl_window=32, **where)
    assert case.calib_data is case.data and case.data.requests
    assert [task.name for task in get_tasks(f"file:{path}")] == [f"file:{path}"]


def test_a_grids_own_setting_comes_before_the_demos():
    assert build_grid("demo", settings={"calib_dataset": "mmlu"}).value("calib_dataset") == "mmlu"
    assert row_grid(datasets=("mmlu_pro",)).quantizer == "rtn" and row_grid("full").quantizer == "gptq"
    alone = row_grid(datasets=("mmlu_pro",))  # what the demo's preset says otherwise is not theirs
    assert [alone.value(name) for name in ("calib_tokens", "score_docs", "calib_dataset")] == [8192, 256, None]
    assert (alone.calib_size, alone.eval_size, alone.avg_bits) == (512, 2048, (4.25,))


def test_documents_of_two_of_them_would_count_twice(where, shared):
    case = case_of("uniform", methods=("uniform",), quantizer="gptq", datasets=("mmlu_pro",),
                   calib_dataset="gsm8k+gsm8k:gold", data_dir=str(shared / "datasets"), **where)
    with pytest.raises(UserError, match="gsm8k and gsm8k:gold share documents, which would count twice"):
        repr(case.calib_data.calib_docs)


def test_brackets_and_prompts_as_asked(where):
    name = "TAQ[calib_dataset=trivia_qa+mmlu_pro,score_prompts=asked]"
    case = case_of(name, methods=(name,), datasets=("mmlu_pro",), **where)
    assert case.prompts.task == "trivia_qa+mmlu_pro" and case.prompts.doc_ids[0].startswith("trivia_qa/")


def test_a_demo_solves_each_row_once_for_its_three_data_sets(where, tiny_folder, tmp_path, capsys):
    flags = [word for name, value in (SIZES | {"seeds": 0}).items() for word in (
        f"--{name}", str(value[0] if isinstance(value, tuple) else value))]
    assert main(["--run_type", "demo", "--model", str(tiny_folder), *flags, "--cache_dir", where["cache_dir"],
                 "--results_dir", where["results_dir"]]) == 0
    out = capsys.readouterr().out
    results = load_results(tmp_path / "r")
    assert len(results) == 5 * 3 and all(r.ok for r in results)
    for name in ("uniform", "random", "TAQ", "THRIFT"):
        cells = [r for r in results if r.name == name]
        assert len({r.stages["weights"] for r in cells}) == 1, name
        assert {r.solver_calibration["text"] for r in cells} == {JOINT}
    assert f"code_mmlu: conditioned with others, on {JOINT}: uniform" in re.sub(r"\s+", " ", out)


def test_a_metric_is_of_one_task(where, tiny_folder, capsys):
    assert main(["--run_type", "demo", "--model", str(tiny_folder), "--method", "TAQO-oracle", "--calib_size", "12",
                 "--eval_size", "8", "--cache_dir", where["cache_dir"], "--results_dir", where["results_dir"]]) == 2
    assert "a method that reads a task's metric was given several tasks, trivia_qa+mmlu_pro" in capsys.readouterr().err
    assert not Path(where["results_dir"]).exists()


@pytest.mark.parametrize("names,said", [("mmlu_pro+trivia_aq", "unknown dataset 'trivia_aq'"),
                                        ("mmlu_pro+mmlu_pro", "names mmlu_pro twice")])
def test_names_that_cannot_be(names, said):
    with pytest.raises(UserError, match=said):
        get_tasks(names)


def test_a_data_set_without_documents_cannot_be_part(where, shared):
    case = case_of("uniform", methods=("uniform",), quantizer="gptq", datasets=("mmlu_pro",),
                   calib_dataset="mmlu_pro+wikitext2", data_dir=str(shared / "datasets"), **where)
    with pytest.raises(UserError, match="reads worked documents, and wikitext2 has only general text; leave"):
        repr(case.prompts)


def test_turns():
    assert _in_turns([[1, 2, 3], [4], [5, 6]]) == [1, 4, 5, 2, 6, 3]
