"""The sources' tasks: their rows in the hub's schemas, their prompts, how answers are read, and rows that are wrong."""

import json
import math

import pytest
import torch

from core.errors import DataError, UserError
from core.sample import Interval
from evaluation.data.rows import Row
from evaluation.data.sources import load_rows
from evaluation.engine.ask import run_batch
from evaluation.engine.prompts import EvalConfig, build_requests
from evaluation.engine.windows import window_requests
from evaluation.tasks import get_task
from evaluation.tasks.gsm8k import GSM8K, numbers
from evaluation.tasks.hellaswag import clean
from evaluation.tasks.mmlu import GROUPS, SUBJECTS
from harness.cli.main import main
from report.records import load_results, load_samples
from report.strata import groups_of
from tests.source_rows import FILES
from tests.tiny import byte_tokenizer, tiny_model

TASKS = ("mmlu", "gsm8k", "hellaswag", "piqa", "arc_easy", "lambada_openai", "wikitext2", "c4")


def parts(name: str, data, calib: int = 6, evaluate: int = 8):
    return get_task(name).split(lambda of: load_rows(of, "folder", data_dir=data), calib, evaluate, 0)


def doc_of(name: str, row: dict):
    return get_task(name).document(Row(row, "x.jsonl", 3))


def whole(name: str, data, scoring: str, shots: int = 1) -> str:
    task, split = get_task(name), parts(name, data)
    doc = split.eval[0]
    examples = split.calib if split.examples is None else split.examples
    return task.whole_prompt(doc, task.exemplars(doc, examples, shots), scoring)


@pytest.mark.parametrize("name", ["mmlu", "gsm8k", "hellaswag", "piqa", "arc_easy", "lambada_openai"])
def test_no_document_calibrates_and_evaluates(source_data, name):
    split = parts(name, source_data)
    assert len(split.calib) == 6 and len(split.eval) == 8
    both = [*split.calib, *split.eval, *(split.examples or ())]
    assert len({d.doc_id for d in both}) == len(both) == len({(d.question, d.options, d.stratum) for d in both})


def test_mmlu_asks_with_examples_of_the_subject(source_data):
    text = whole("mmlu:virology", source_data, "letter", shots=2)
    assert text.startswith("The following are multiple choice questions (with answers) about virology.\n\nd0\nA. red\n")
    assert "d1\nA. red\nB. green\nC. blue\nD. grey\nAnswer: B\n\n" in text and text.endswith("\nAnswer:")
    assert "Question: d0\nAnswer: green\n\n" in whole("mmlu:virology", source_data, "cloze", shots=2)


def test_mmlu_has_57_subjects_and_four_groups(source_data):
    assert len(SUBJECTS) == 57 and [len(names.split()) for names in GROUPS.values()] == [18, 12, 13, 14]
    assert {d.stratum for d in parts("mmlu:stem", source_data, 2, 2).eval} == {"astronomy"}
    assert get_task("mmlu:stem").name == "mmlu:stem"
    with pytest.raises(UserError, match=r"mmlu has no subject or group 'virologi'.*did you mean 'virology'"):
        get_task("mmlu:virologi")
    with pytest.raises(UserError, match="'piqa' has no parts"):
        get_task("piqa:stem")


def test_gsm8k_reads_answers_both_ways():
    task = get_task("gsm8k")
    doc = doc_of("gsm8k", {"question": "q", "answer": "It is <<1+1=2>>2.\n#### 1,234"})
    assert doc.gold == "It is <<1+1=2>>2.\n#### 1234 The answer is 1234." and doc.aliases == ("1234",)
    for text, answer, right, last in (("so the answer is 1,234. Then 7", "1234", 1, 0),
                                      ("5 and then $1,234.", "1234", 1, 1),
                                      ("The answer is 7, not 1234", "7", 0, 1), ("the answer is unknown", None, 0, 0),
                                      ("", None, 0, 0), ("-1234", "-1234", 0, 0), ("1234.0", "1234.0", 0, 0)):
        grade = task.grade(doc, text)
        assert (grade.answer, grade.correct, grade.scores["last_number"]) == (answer, right, last), text
    assert numbers("$1,000.5, .5 and -3.") == ["1000.5", ".5", "-3"]


def test_gsm8k_calibrates_on_train_and_shows_its_first_rows(source_data):
    split = parts("gsm8k", source_data)
    assert all(d.doc_id.startswith("train/") for d in (*split.calib, *split.examples)) and len(split.examples) == 8
    text = whole("gsm8k", source_data, "generate")
    assert text.startswith("Question: What is 0 + 2?\nAnswer: It is 2.\n#### 2 The answer is 2.\n\n")


@torch.inference_mode()
def test_gsm8k_gold_asks_for_the_solutions_likelihood_alone(source_data):
    task, tok, model = get_task("gsm8k:gold"), byte_tokenizer(), tiny_model("llama", max_position_embeddings=4096)
    whole_task, split = get_task("gsm8k"), parts("gsm8k:gold", source_data, evaluate=2)
    assert split == parts("gsm8k", source_data, evaluate=2) and list(task.metrics) == ["perplexity"]
    cfg = EvalConfig("likelihood", num_fewshot=1, max_new_tokens=1)
    requests = build_requests(task, split.eval, split.examples, tok, cfg=cfg)
    written = EvalConfig("generate", num_fewshot=1, max_new_tokens=1)
    both = [run_batch(model, tok, *asked) for asked in ((task, requests, cfg), (whole_task, requests, written))]
    assert [s.gold_loglik for s in both[0]] == [s.gold_loglik for s in both[1]] and both[0][0].correct is None
    with pytest.raises(UserError, match="gsm8k has no part 'silver'"):
        get_task("gsm8k:silver")


def test_prompts_of_the_cloze_tasks(source_data):
    assert clean("  a [title] b [step] c") == "a. b c"
    text = whole("hellaswag", source_data, "cloze", 0)
    assert text.startswith("Roofs: A man ") and text.endswith(". He")
    assert whole("piqa", source_data, "cloze", 0).startswith("Question: open a jar ")
    assert whole("arc_easy", source_data, "cloze", 0).endswith("\nAnswer:")
    assert parts("arc_easy", source_data).eval[0].gold in "ABCD"
    both = get_task("piqa").grade_options(parts("piqa", source_data).eval[0], (-1.0, -1.2), "cloze")
    assert both.answer == "B" and set(both.scores) == {"accuracy_sums"}  # 1.0/7 against 1.2/10 a character


@pytest.mark.parametrize("name,row,said", [
    ("mmlu", {"subject": "astrology"}, "expected one of MMLU's 57 subjects.*did you mean 'astronomy'"),
    ("mmlu", {"choices": "a"}, "a list of texts"), ("mmlu", {"answer": 4}, "a letter from A to D"),
    ("gsm8k", {"answer": "just text"}, "ends in '#### ' and a number"),
    ("gsm8k", {"answer": "#### 1 or 2"}, "ends in '#### ' and a number"),
    ("hellaswag", {"label": ""}, "a text from '0' to '3'"), ("piqa", {"label": 2}, "A to B"),
    ("arc_easy", {"answerKey": "E"}, r"one of the row's labels \(1, 2, 3, 4\)"),
    ("lambada_openai", {"text": "word"}, "a passage that ends in a word"),
    ("lambada_openai", {"text": "ends in space "}, "a passage that ends in a word")])
def test_a_wrong_row_is_one_sentence(source_data, name, row, said):
    first = next(rows[0] for path, rows in FILES.items() if path.startswith(name))
    with pytest.raises(DataError, match=f"x.jsonl, row 3, field .*{said}"):
        doc_of(name, first | row)


def test_windows_do_not_overlap_and_ask_all_but_their_first_token(source_data):
    task, tok = get_task("wikitext2"), byte_tokenizer()
    split = parts("wikitext2", source_data)
    assert split.calib == () and len(split.eval) == 9  # blank rows count: the joined text is the published one
    requests = window_requests(task, split.eval, tok, window=64, most=5)
    ids = tok("\n\n".join(d.question for d in split.eval))["input_ids"]
    assert [list(r.context + r.gold) for r in requests] == [ids[i:i + 64] for i in range(0, 320, 64)]
    assert len({r.doc.doc_id for r in requests}) == 5 and all(len(r.context) == 1 for r in requests)
    with pytest.raises(DataError, match="less than one window of 100000; lower --ppl_window"):
        window_requests(task, split.eval, tok, window=100000, most=5)


@torch.inference_mode()
def test_a_windows_likelihood_is_the_models(source_data):
    task, tok, model = get_task("c4"), byte_tokenizer(), tiny_model("llama")
    requests = window_requests(task, parts("c4", source_data).eval, tok, window=64, most=3)
    samples = run_batch(model, tok, task, requests, cfg=EvalConfig("likelihood", max_new_tokens=1))
    for request, sample in zip(requests, samples, strict=True):
        ids = torch.tensor([[*request.context, *request.gold]])
        logits = model(ids).logits.float().log_softmax(-1)[0, :-1]
        wanted = logits.gather(1, ids[0, 1:, None]).mean()
        assert sample.gold_loglik == pytest.approx(float(wanted), abs=1e-4)
        assert (sample.correct, sample.text, sample.n_new) == (None, "", 0)
    mean = Interval(-2.0, -2.5, -1.5)
    assert task.derived({"gold_loglik": mean})["perplexity"] == Interval(math.exp(2), math.exp(1.5), math.exp(2.5))


@torch.inference_mode()
def test_the_last_word_is_right_if_it_is_the_models_first_choice(source_data):
    task, tok, model = get_task("lambada_openai"), byte_tokenizer(), tiny_model("llama")
    first = parts("lambada_openai", source_data).eval[0]
    ids = tok(first.question)["input_ids"]
    best = []
    for _ in range(3):  # what the model would write, as bytes that are a text
        best.append(int(model(torch.tensor([[*ids, *best]])).logits[0, -1].argmax()))
    cfg = EvalConfig("likelihood", max_new_tokens=1)
    (request,) = build_requests(task, [first], [], tok, cfg=cfg)
    assert request.gold == tuple(tok(f" {first.gold}")["input_ids"]) and request.context == tuple(ids)
    for gold, right in ((tuple(best), 1.0), ((*best[:2], (best[2] + 1) % 320), 0.0)):
        (sample,) = run_batch(model, tok, task, [type(request)(**vars(request) | {"gold": gold})], cfg=cfg)
        assert sample.correct == right and sample.scores["word_loglik"] == pytest.approx(3 * sample.gold_loglik)


def test_one_solve_answers_three_data_sets(source_data, tiny_folder, tmp_path, capsys, monkeypatch):
    """Calibrated on mmlu, asked mmlu, gsm8k and wikitext2: the tables say so, and the weights are made once."""
    monkeypatch.setattr(GSM8K, "max_new_tokens", 4)
    asked = ["--model", str(tiny_folder), "--data_dir", str(source_data), "--calib_size", "6", "--eval_size", "8",
             "--num_fewshot", "0", "--ppl_window", "64", "--calib_tokens", "600",
             "--quantizer", "gptq", "--device", "cpu", "--avg_bits", "4.75", "--group_size", "32",
             "--cache_dir", str(tmp_path / "cache"), "--results_dir", str(tmp_path / "results")]
    assert main([*asked, "--method", "equal", "--dataset", "mmlu", "gsm8k", "wikitext2",
                 "--calib_dataset", "mmlu"]) == 0
    said = capsys.readouterr().out
    results = {(r.name, r.dataset): r for r in load_results(tmp_path / "results")}
    assert all(r.ok for r in results.values()) and len(results) == 12
    rows = [results["equal", name] for name in ("mmlu", "gsm8k", "wikitext2")]
    assert len({r.stages["weights"] for r in rows}) == 1
    solved = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/meta.json")]
    assert sum(meta["identity"]["stage"] == "weights" for meta in solved) == 3  # uniform, random and equal: one each
    assert {r.solver_calibration["text"] for r in rows} == {"mmlu"}
    assert "gsm8k: conditioned elsewhere, on mmlu: uniform, random, equal" in said.replace("\n", " ")
    assert "Lower is better: wikitext2 ppl (a perplexity is exp of the mean nats a token)" in said.replace("\n", " ")
    ppl = results["equal", "wikitext2"]
    samples = load_samples(ppl)
    mean = sum(s.gold_loglik for s in samples) / len(samples)
    assert ppl.metrics["perplexity"].value == pytest.approx(math.exp(-mean)) and ppl.metrics["accuracy"] is None
    assert ppl.task.kind == "likelihood" and ppl.task.chance is None and results["equal", "mmlu"].task.chance == 0.25
    groups = groups_of(results["equal", "mmlu"])
    assert set(groups) == {"humanities", "other", "stem"} and sum(of.n for of in groups.values()) == rows[0].n


@pytest.mark.parametrize("name", TASKS)
def test_real_rows_become_documents(shared, name):
    split = get_task(name).split(lambda of: load_rows(of, "folder", data_dir=shared / "datasets"), 32, 64, 42)
    assert len(split.eval) >= 64 and len(split.calib) == (0 if name in ("wikitext2", "c4") else 32)
