"""print_results.py --format lm_eval: files in lm-evaluation-harness's layout, read back with its own code."""

import json
import math
import subprocess
import sys

import pytest

from core.sample import Sample
from evaluation.statistics.summary import summarise
from print_results import main
from report.lm_eval import task_name, write
from report.records import Question, TaskFacts, load_results, load_samples, write_questions
from tests.report.conftest import put_row

HEAD = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config", "task_hashes", "date",
        "git_hash", "model_name", "model_source", "transformers_version", "total_evaluation_time_seconds")
LINE = ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
        "prompt_hash", "target_hash")


def read(folder):
    """The results files by folder, and the samples by folder and file."""
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/results_*.json")}
    samples = {(path.parent.name, path.name): [json.loads(line) for line in path.read_text().splitlines()]
               for path in folder.glob("*/samples_*.jsonl")}
    return results, samples


def test_a_folder_a_row_and_every_number_of_its_tasks(folder, tmp_path, capsys):
    assert main(["--results_dir", str(folder), "--format", "lm_eval", "--output", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list(tmp_path.rglob("*.json*")))
    results, samples = read(tmp_path)
    assert {"toy__fp16__ownb__s0", "toy__uniform__4.75b__s0", "toy__TAQ__5.5b__s0"} <= set(results)
    cells = {(r.name, r.avg_bits, r.dataset): r for r in load_results(folder)}
    content, cell = results["toy__TAQ__4.75b__s0"], cells["TAQ", 4.75, "mmlu_pro"]
    assert set(HEAD) <= set(content) and set(content["results"]) == {"mmlu_pro", "trivia_qa"}
    found, own = content["results"]["mmlu_pro"], [s.correct for s in load_samples(cell)]
    assert found["acc,none"] == cell.metrics["accuracy"].value and found["sample_len"] == cell.n
    mean = sum(own) / len(own)
    assert found["acc_stderr,none"] == pytest.approx(math.sqrt(mean * (1 - mean) / (len(own) - 1)))
    assert content["n-samples"]["mmlu_pro"] == {"original": cell.n, "effective": cell.n}
    (name,) = [name for row, name in samples if row == "toy__TAQ__4.75b__s0" and "mmlu_pro" in name]
    lines = samples["toy__TAQ__4.75b__s0", name]
    assert name == "samples_mmlu_pro_2026-01-01T00-00-00.000000.jsonl" and len(lines) == cell.n
    assert set(LINE) <= set(lines[0]) and [line["acc"] for line in lines] == own
    assert [line["doc_id"] for line in lines] == list(range(cell.n))


def test_its_own_code_reads_the_files(folder, tmp_path):
    utils = pytest.importorskip("lm_eval.utils", reason="needs lm-evaluation-harness: "
                                                        "pip install -r requirements-lm-eval.txt")
    paths = [str(path) for path in write(tmp_path, load_results(folder))]
    results, samples = utils.get_results_filenames(paths), utils.get_sample_results_filenames(paths)
    assert len(results) + len(samples) == len(paths) and len(samples) == 2 * len(results)
    assert {utils.get_file_task_name(path.rpartition("/")[2]) for path in samples} == {"mmlu_pro", "trivia_qa"}
    assert {utils.get_file_datetime(path) for path in samples} == {"2026-01-01T00-00-00.000000"}
    table = utils.make_table(json.loads(open(results[0]).read()))
    assert "mmlu_pro" in table and "|acc" in table.replace(" ", "") and "±" in table
    import datasets

    rows = datasets.load_dataset("json", data_files=samples[0], split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows > 0 and {"doc_id", "resps", "acc"} <= set(rows.column_names)


def sample(number: int, **changes) -> Sample:
    plain = dict(doc_id=f"test/{number}", prompt="p", gold="B", text="", answer="B", correct=1.0, f1=None,
                 choice_logprobs=None, gold_loglik=-1.0, n_prompt=3, n_new=0, truncated=False)
    return Sample(**plain | changes)


def put(folder, dataset: str, samples: list, kind: str, metrics: dict, scoring: str, **derived) -> None:
    """A row of these samples with their questions, under another digest of what is asked."""
    put_row(folder, "uniform", dataset, 4.75, 0.0, task=TaskFacts(kind, metrics), scoring=scoring,
            metrics=summarise(samples) | derived, n=len(samples), stages={"evaluation": dataset.replace(":", "-")})
    result = next(r for r in load_results(folder) if r.dataset == dataset)
    from dataclasses import replace

    from report.records import write_result

    write_result(folder, result.file.stem, replace(result, file=None), samples)
    write_questions(folder, result.asked, [Question(s.doc_id, f"q {s.doc_id}", ("no", "yes") if kind == "choice"
                                                    else ()) for s in samples])


def test_kinds_of_tasks_in_its_names(tmp_path):
    made = tmp_path / "results"
    made.mkdir()
    put(made, "hellaswag", [sample(i, choice_logprobs=(-2.5, -1.0), scores={"accuracy_sums": float(i)})
                            for i in range(2)], "choice", {"accuracy": "acc", "accuracy_sums": "acc sums"}, "cloze")
    put(made, "lm_eval:t_gen", [sample(i, gold="18", text=" 18 e", answer=None if i else "18", correct=1.0 - i,
                                       scores={"exact_match,last": 1.0}) for i in range(2)], "generate",
        {"accuracy": "exact_match,said", "exact_match,last": "exact_match,last"}, "generate")
    put(made, "lm_eval:t_word", [sample(i, gold=" word", scores={"loglik": -3.0}) for i in range(2)], "likelihood",
        {"accuracy": "acc", "perplexity": "perplexity"}, "likelihood",
        perplexity=load_results(made)[0].metrics["accuracy"])
    write(tmp_path / "out", load_results(made))
    results, samples = read(tmp_path / "out")
    (content,), by_task = results.values(), {name.split("_2026")[0]: lines for (_, name), lines in samples.items()}
    assert content["results"]["hellaswag"]["acc_norm,none"] == 1.0
    assert content["results"]["hellaswag"]["acc,none"] == 0.5
    assert content["results"]["t_gen"]["exact_match,said"] == 0.5
    assert content["results"]["t_gen"]["exact_match,last"] == 1.0
    assert content["results"]["t_word"]["perplexity_stderr,none"] == "N/A"  # no mean over documents
    assert content["higher_is_better"]["t_word"] == {"acc": True, "perplexity": False, "gold_loglik": True}
    choice, written, word = (by_task[f"samples_{name}"] for name in ("hellaswag", "t_gen", "t_word"))
    assert choice[0]["resps"] == [[["-2.5", "None"]], [["-1.0", "None"]]] and choice[0]["target"] == "1"
    assert choice[0]["arguments"]["gen_args_1"] == {"arg_0": "q test/0", "arg_1": "yes"}
    assert [(line["filter"], line["filtered_resps"]) for line in written] == [
        ("said", ["18"]), ("said", ["[invalid]"]), ("last", [" 18 e"]), ("last", [" 18 e"])]
    assert written[0]["exact_match"] == 1.0 and written[1]["exact_match"] == 0.0 and written[0]["resps"] == [[" 18 e"]]
    assert word[0]["resps"] == [[["-3.0", "True"]]] and word[0]["acc"] == 1.0 and word[0]["perplexity"] == -3.0


def test_the_same_row_under_two_settings_is_two_folders(folder, tmp_path):
    made = tmp_path / "results"
    made.mkdir()
    for machine in ("cpu", "cuda"):
        put_row(made, "uniform", "mmlu_pro", 4.75, 0.0, machine=machine)
    write(tmp_path / "out", load_results(made))
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_names_of_parts_are_no_folders(folder):
    from dataclasses import replace

    result = load_results(folder)[0]
    assert task_name(replace(result, dataset="mmlu:stem")) == "mmlu_stem"
    assert task_name(replace(result, dataset="lm_eval:hellaswag")) == "hellaswag"


@pytest.mark.parametrize("flags,said", [
    (["--format", "lm_eval"], "needs --output FOLDER"), (["--output", "x"], "give both or neither"),
    (["--format", "lm_eval", "--output", "x", "--details"], "--details has no meaning with --format lm_eval"),
    (["--format", "lm_eval", "--output", "x", "--method", "TAK"], "did you mean 'TAQ'")])
def test_flags_without_effect_are_refused(folder, capsys, flags, said):
    assert main(["--results_dir", str(folder), *flags]) == 2
    assert said in capsys.readouterr().err


def test_rows_are_chosen_as_for_tables(folder, tmp_path):
    assert main(["--results_dir", str(folder), "--format", "lm_eval", "--output", str(tmp_path), "--method", "TAQ",
                 "--avg_bits", "5.5"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["toy__TAQ__5.5b__s0"]


def test_writing_imports_neither_torch_nor_the_library():
    code = "import sys, report.lm_eval; sys.exit(bool({'torch', 'lm_eval', 'harness'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
