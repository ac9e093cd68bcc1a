"""Tasks of lm-evaluation-harness through our engine: its own numbers on a tiny model, and what is refused."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.errors import DataError, UserError
from core.model import load_model, load_tokenizer
from core.types import ModelRef
from evaluation.engine.ask import evaluate
from evaluation.engine.prompts import EvalConfig, build_requests
from evaluation.statistics.summary import summarise
from evaluation.tasks import get_task
from evaluation.tasks.lm_eval import Bridged, look_in
from harness.presets import build_grid
from harness.stages.documents import task_data

ROWS = [{"q": f"{a} plus {b} is{' ' * (a % 2)}", "sum": a + b, "wrong": [a + b + 1, a, 7 * b], "text": "count " * a}
        for a in range(1, 5) for b in range(1, 6)]
HEAD = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, train: {folder}/train.jsonl}}}}
test_split: test
output_type: {kind}
"""
TASKS = {
    "t_choice": ("multiple_choice", r"""
training_split: train
num_fewshot: 2
doc_to_text: "{{q}}"
doc_to_choice: "{{[wrong[0], sum, wrong[1], wrong[2]] | map('string') | list}}"
doc_to_target: 1
description: "Add.\n\n"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: exact_match}, {metric: mcc}]
"""),
    "t_prompts": ("multiple_choice", r"""
doc_to_text: "{{1}}"
doc_to_choice: "{{['Is it ' + q, q, 'So ' + q]}}"
doc_to_target: "{{sum}} in all"
metric_list: [{metric: acc}]
"""),
    "t_bare": ("multiple_choice", r"""
doc_to_text: ""
target_delimiter: ""
doc_to_choice: "{{[q + 'six', q + (sum | string)]}}"
doc_to_target: 1
metric_list: [{metric: acc}]
"""),
    "t_word": ("loglikelihood", r"""
doc_to_text: "{{q}}"
doc_to_target: " {{sum}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""),
    "t_written": ("generate_until", r"""
training_split: train
num_fewshot: 1
doc_to_text: "{{q}}"
doc_to_target: "{{sum}}"
generation_kwargs: {until: ["e", "."], max_gen_toks: 9}
metric_list: [{metric: exact_match, ignore_case: true}]
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "([a-z]+)"}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
"""),
    "t_rolling": ("loglikelihood_rolling", r"""
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of one's own tasks, and rows."""
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install -r requirements-lm-eval.txt")
    folder = tmp_path_factory.mktemp("lm_eval")
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    train = [row | {"q": f"again, {row['q']}"} for row in ROWS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    for name, (kind, text) in TASKS.items():
        (folder / f"{name}.yaml").write_text(HEAD.format(name=name, folder=folder, kind=kind) + text)
    look_in(str(folder))
    yield folder
    look_in(None)


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    ref = ModelRef("tiny", "r", "float32")
    return load_model(str(tiny_folder), ref, torch.device("cpu")), load_tokenizer(str(tiny_folder), ref)


def theirs(name: str, folder, model, tokenizer, length: int) -> tuple[list[dict], dict]:
    """What lm-evaluation-harness gives by itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(HFLM(pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=1), tasks=[name],
                            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
                            bootstrap_iters=0)
    return found["samples"][name], found["results"][name]


def ours(name: str, model, tokenizer, length: int, rows: list[int] | None = None):
    """Every row of the test split through our engine."""
    task = get_task(f"lm_eval:{name}")
    docs = task.loaded.docs(task, "test", ROWS)
    docs = docs if rows is None else [docs[row] for row in rows]
    cfg = EvalConfig(task.scorings[0], num_fewshot=task.num_fewshot, max_length=length,
                     max_new_tokens=task.max_new_tokens)
    requests = build_requests(task, docs, (), tokenizer, cfg=cfg)
    return task, requests, evaluate(model, tokenizer, task, requests, cfg)


@pytest.mark.parametrize("length", [512, 40])
@pytest.mark.parametrize("name", ["t_choice", "t_prompts", "t_bare", "t_word"])
def test_log_probabilities_and_grades_are_its_own(tasks, tiny, name, length):
    expected, totals = theirs(name, tasks, *tiny, length)
    task, requests, samples = ours(name, *tiny, length)
    assert len(samples) == len(expected) == len(ROWS)
    for request, sample, one in zip(requests, samples, expected, strict=True):
        asked = [float(answers[0][0]) for answers in one["resps"]]
        got = sample.choice_logprobs or [sample.gold_loglik * len(request.gold)]
        assert list(got) == pytest.approx(asked, abs=1e-3)
        assert request.prompt_sha == one["prompt_hash"][:16]
        assert sample.correct == one["acc"]
        for metric in task.metrics:
            if metric != "accuracy":
                got = sample.scores["loglik" if metric == "perplexity" else metric]
                assert got == pytest.approx(float(one[metric]), abs=1e-3)
    found = summarise(samples)
    found |= task.derived(found)
    assert found["accuracy"].value == pytest.approx(totals["acc,none"])
    assert "perplexity" not in found or found["perplexity"].value == pytest.approx(totals["perplexity,none"], rel=1e-3)


@pytest.mark.parametrize("length", [512, 30])
def test_written_texts_pass_its_filters(tasks, tiny, length):
    expected, _ = theirs("t_written", tasks, *tiny, length)
    task, requests, samples = ours("t_written", *tiny, length)
    assert any(r.truncated for r in requests) == (length == 30)
    assert max(len(r.context) + len(r.gold) - 1 for r in requests) <= length
    first, whole = ([one for one in expected if one["filter"] == key] for key in ("first", "whole"))
    assert [s.text for s in samples] == [one["resps"][0][0] for one in first]
    assert [s.answer for s in samples] == [None if one["filtered_resps"][0] == "[invalid]" else
                                           one["filtered_resps"][0] for one in first]
    assert [s.correct for s in samples] == [one["exact_match"] for one in first]
    assert [s.scores["exact_match,whole"] for s in samples] == [one["exact_match"] for one in whole]
    assert task.metrics == {"accuracy": "exact_match,first", "exact_match,whole": "exact_match,whole"}
    assert task.stop == ("e", ".") and task.max_new_tokens == 9 and len({s.text for s in samples}) > 1


@pytest.mark.parametrize("length", [512, 8])
def test_rolling_perplexities_are_its_own(tasks, tiny, length):
    expected, totals = theirs("t_rolling", tasks, *tiny, length)
    task, requests, samples = ours("t_rolling", *tiny, length)
    assert len(requests) == len(ROWS) if length == 512 else len(requests) > 2 * len(ROWS)
    assert max(len(r.context) + len(r.gold) - 1 for r in requests) == (24 if length == 512 else length)
    by_row = {row: sum(s.scores["loglik"] for s in samples if s.doc_id.startswith(f"test/{row}/"))
              for row in range(len(ROWS))}
    assert list(by_row.values()) == pytest.approx([float(one["resps"][0][0]) for one in expected], abs=1e-3)
    found = task.derived(summarise(samples))
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert found[metric].value == pytest.approx(totals[f"{metric},none"], rel=1e-5)
        assert found[metric].low <= found[metric].value <= found[metric].high


def test_prompts_do_not_depend_on_which_rows_are_asked(tasks, tiny):
    _, every, _ = ours("t_choice", *tiny, 512)
    _, some, _ = ours("t_choice", *tiny, 512, rows=[7, 3])
    assert [r.context for r in some] == [every[7].context, every[3].context]
    assert "again, " in some[0].doc.question and some[0].doc.question.startswith("Add.\n\n")


@pytest.mark.parametrize("name,apart", [("t_choice", True), ("t_word", False)])
def test_splits_are_disjoint_and_training_rows_calibrate(tasks, name, apart):
    parts = get_task(f"lm_eval:{name}").split(None, 4, 6, seed=0)
    assert [doc.doc_id for doc in parts.eval] == [f"test/{row}" for row in range(0 if apart else 4, 6 if apart else 10)]
    assert all(doc.doc_id.startswith("train/" if apart else "test/") for doc in parts.calib) and len(parts.calib) == 4
    assert not {doc.question for doc in parts.calib} & {doc.question for doc in parts.eval}
    assert not any("again, " in doc.question for doc in parts.eval)  # worked examples come with the request


def data_of(folder, tokenizer, name="t_choice", **given):
    grid = build_grid("demo", datasets=(f"lm_eval:{name}",), models=("x",), lm_eval_path=str(folder), calib_size=4,
                      eval_size=6, **given)
    return task_data(grid, grid.datasets[0], tokenizer, parameters=1, positions=512)


def test_the_grid_asks_it_and_its_digest_sees_the_yaml_and_the_rows(tasks, tiny, tmp_path):
    data = data_of(tasks, tiny[1])
    assert data.cfg.scoring == "given" and data.cfg.num_fewshot == 2 and data.cfg.max_length == 512
    assert isinstance(data.task, Bridged) and data.task.chance([r.doc for r in data.requests]) == 0.25
    assert data_of(tasks, tiny[1], num_fewshot=1).cfg.num_fewshot == 1
    assert data_of(tasks, tiny[1], lm_eval_max_length=64).cfg.max_length == 64
    copy = tmp_path / "moved"
    copy.mkdir()
    for file in ("test.jsonl", "train.jsonl"):
        (copy / file).write_text((tasks / file).read_text())

    def digest_with(old: str, new: str) -> str:
        folder = tmp_path / f"tasks{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        text = (tasks / "t_choice.yaml").read_text().replace(str(tasks), str(copy))
        assert old in text
        (folder / "t_choice.yaml").write_text(text.replace(old, new))
        return data_of(folder, tiny[1]).eval_digest

    assert digest_with("acc_norm", "acc_norm") == data.eval_digest  # where things lie does not count
    assert digest_with("acc_norm", "acc_bytes") != data.eval_digest  # how answers are graded does
    look_in(str(tasks))


def test_two_folders_in_one_process_are_two(tasks, tiny, tmp_path):
    (tmp_path / "t.yaml").write_text((tasks / "t_choice.yaml").read_text().replace("Add.", "Sum up."))
    here, there = data_of(tasks, tiny[1]), data_of(tmp_path, tiny[1])
    assert here.requests[0].doc.question.startswith("Add.") and there.requests[0].doc.question.startswith("Sum up.")
    look_in(str(tasks))


def test_nothing_else_changes_without_the_flag():
    grid = build_grid("demo", models=("x",))
    assert grid.lm_eval_path is None and "lm_eval" not in str(sorted(replace(grid).settings))
    from harness.grid import table_settings

    assert not [name for name in table_settings(grid) if "lm_eval" in name]


REFUSED = {
    "t_sampled": ("generate_until", "doc_to_text: a\ndoc_to_target: b\ngeneration_kwargs: {do_sample: true, until: []}",
                  "draws its answers"),
    "t_mutual": ("multiple_choice", "doc_to_text: a\ndoc_to_target: 0\nmetric_list: [{metric: acc_mutual_info}]",
                 "asks its options a second time"),
    "t_odd": ("winning", "doc_to_text: a", "has output_type 'winning'; use a task of one of: multiple_choice"),
    "t_code": ("generate_until", "doc_to_text: a\nunsafe_code: true", "runs code that the model wrote"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_is_refused_in_one_sentence(tasks, tmp_path, name):
    kind, text, said = REFUSED[name]
    (tmp_path / "t.yaml").write_text(HEAD.format(name=name, folder=tmp_path, kind=kind) + text)
    look_in(str(tmp_path))
    with pytest.raises(UserError, match=said) as error:
        get_task(f"lm_eval:{name}")
    look_in(str(tasks))
    assert "\n" not in str(error.value)


def test_names_groups_folders_and_broken_files(tasks, tmp_path):
    for name, said in (("t_choise", r"has no task 't_choise' \(did you mean 't_choice'\?\)"),
                       ("arc_challange", r"did you mean 'arc_challenge'"),
                       ("mmlu_stem", r"lm_eval:mmlu_stem is a (group|tag) of tasks \(.+\); name its tasks one by one")):
        with pytest.raises(UserError, match=said):
            get_task(f"lm_eval:{name}")
    with pytest.raises(UserError, match="--lm_eval_path '/no/such' does not exist; give a folder"):
        build_grid("demo", models=("x",), lm_eval_path="/no/such")
    with pytest.raises(UserError, match="lm_eval is no data set by itself; name a task"):
        get_task("lm_eval").split(None, 1, 1, 0)
    (tmp_path / "bad.yaml").write_text("task: t_bad\ndoc_to_text: [unclosed\n")
    (tmp_path / "lost.yaml").write_text(HEAD.format(name="t_lost", folder=tmp_path, kind="loglikelihood")
                                        + "doc_to_text: q\ndoc_to_target: sum\n")
    look_in(str(tmp_path))
    with pytest.raises(UserError, match=r"bad.yaml' does not load as a task of lm-evaluation-harness \(.+\); correct"):
        get_task("lm_eval:t_bad")
    with pytest.raises(DataError, match=r"lm_eval:t_lost does not load \(FileNotFoundError: .+\); correct its YAML"):
        get_task("lm_eval:t_lost").split(None, 1, 1, 0)
    look_in(str(tasks))


def test_the_documents_yaml_file_loads(tasks, tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "ADD_A_DATASET.md").read_text()
    (yaml,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    (tmp_path / "my_task.yaml").write_text(yaml.replace("FOLDER", str(tmp_path)))
    rows = [{"question": f"{part} {i}?", "options": ["no", "yes", "never"], "answer": i % 3}
            for part in ("train", "asked") for i in range(9)]
    for name, some in (("train", rows[:9]), ("asked", rows[9:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    look_in(str(tmp_path))
    task = get_task("lm_eval:my_task")
    parts = task.split(None, 4, 6, seed=0)
    assert [doc.gold for doc in parts.eval] == list("ABCABC")
    assert parts.calib[0].question == "Question: train 0?\nAnswer:"
    assert task.metrics == {"accuracy": "acc", "acc_norm": "acc_norm"}
    look_in(str(tasks))


def test_a_chat_template_is_refused(tasks, tiny):
    with pytest.raises(UserError, match="which have no chat template here; run it without --chat_template on"):
        data_of(tasks, tiny[1], chat_template="on")


def test_without_the_package_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"install it with pip install -r requirements-lm-eval\.txt"):
        from evaluation.bridge.library import package

        package()


def test_registering_the_bridge_imports_nothing():
    import subprocess

    code = ("import sys, evaluation.tasks, harness.presets; "
            "sys.exit(bool({'lm_eval', 'torch', 'datasets'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_grid_of_them_runs_and_its_files_go_back(tasks, tiny, tiny_folder, tmp_path, capsys):
    """Every kind through quantizing, calibrating, tables and files; a second run computes nothing."""
    from harness.cli.main import main
    from print_results import main as print_main
    from report.records import load_results, load_samples

    names = ("t_choice", "t_prompts", "t_bare", "t_word", "t_written", "t_rolling")
    flags = ["--model", str(tiny_folder), "--dataset", *(f"lm_eval:{name}" for name in names), "--calib_size", "4",
             "--eval_size", "6", "--avg_bits", "4.75", "--threads", "1", "--device", "cpu", "--quantizer", "gptq",
             "--calib_tokens", "200", "--method", "TaCQ", "--lm_eval_path", str(tasks), "--lm_eval_max_length", "256",
             "--cache_dir", str(tmp_path / "cache"), "--results_dir", str(tmp_path / "results")]
    assert main(flags) == 0
    look_in(str(tasks))
    results = {r.dataset.removeprefix("lm_eval:"): r for r in load_results(tmp_path / "results") if r.name == "TaCQ"}
    assert set(results) == set(names)
    for name, metric in (("t_choice", "acc_norm"), ("t_word", "perplexity"), ("t_rolling", "bits_per_byte"),
                         ("t_written", "exact_match,whole")):
        assert metric in results[name].task.metrics and results[name].metrics[metric] is not None
    assert [*results["t_choice"].task.metrics][:2] == ["accuracy", "acc_norm"]  # the table's column is the accuracy
    assert results["t_choice"].scoring == "given" and results["t_choice"].task.chance == 0.25
    assert load_samples(results["t_choice"])[0].choice_logprobs is not None
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json*")}
    capsys.readouterr()
    assert main(flags) == 0
    look_in(str(tasks))
    assert before == {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json*")}
    assert print_main(["--results_dir", str(tmp_path / "results"), "--format", "lm_eval", "--method", "TaCQ",
                       "--output", str(tmp_path / "back")]) == 0
    (file,) = (tmp_path / "back").glob("*/results_*.json")
    assert set(json.loads(file.read_text())["results"]) == set(names)
    lines = [json.loads(line) for line in next(file.parent.glob("samples_t_choice_*")).read_text().splitlines()]
    expected, _ = theirs("t_choice", tasks, *tiny, 256)
    assert [line["prompt_hash"] for line in lines] == [one["prompt_hash"] for one in expected[:6]]
