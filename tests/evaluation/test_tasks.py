"""What a task decides by itself: grades, stop texts, metrics, examples, joiner, lengths; the engine only asks."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.registry import DATASETS
from core.sample import Sample
from evaluation.calibration.documents import worked_documents
from evaluation.data.documents import Doc
from evaluation.engine.ask import run_batch
from evaluation.engine.generate import Stopping, greedy
from evaluation.engine.kv_cache import State
from evaluation.engine.prompts import EvalConfig, build_requests
from evaluation.grading import Grade, exact_match, extract, token_f1
from evaluation.statistics.summary import mean_task_metric, summarise
from evaluation.tasks import get_task
from evaluation.tasks.base import Task
from evaluation.tasks.choice import ChoiceTask
from tests.tiny import byte_tokenizer, tiny_model

TRIVIA, PRO = get_task("trivia_qa"), get_task("mmlu_pro")
OPEN = Doc("o", "where", gold="St. Louis", aliases=("St. Louis", "st louis"))
CHOICE = Doc("c", "what", options=("one", "three"), gold="B", gold_index=1)


@pytest.fixture(scope="module")
def tok():
    return byte_tokenizer()


# ---- grades

@pytest.mark.parametrize("text", ["", " ", "\n", " St. Louis", "St. Louis.", "the St Louis team", "A", "Paris"])
def test_an_open_question_is_graded_by_exact_match_and_f1(text):
    grade = TRIVIA.grade(OPEN, text)
    answer = extract(text)
    assert (grade.answer, grade.correct) == (answer, exact_match(answer, OPEN.aliases))
    assert grade.fields() == {"answer": answer, "correct": exact_match(answer, OPEN.aliases), "scores": {},
                              "f1": token_f1(answer, OPEN.aliases)}


def test_a_choice_is_graded_by_its_letter():
    assert PRO.grade(CHOICE, "B").fields() == {"answer": "B", "correct": 1.0, "f1": None, "scores": {}}
    assert PRO.grade(CHOICE, "A").correct == 0
    assert PRO.grade_options(CHOICE, (-1.0, -1.5), "letter").answer == "A"
    assert PRO.grade_options(CHOICE, (-1.0, -1.5), "cloze").answer == "B"  # by the character, 1/3 against 1.5/5
    assert PRO.grade_options(CHOICE, (-1.0, -1.0), "letter").answer == "A"  # ties: the first


def test_a_task_without_right_and_wrong():
    assert Grade(None, None, {"nats": np.float64(2.5)}).fields() == {"answer": None, "correct": None, "f1": None,
                                                                     "scores": {"nats": 2.5}}


@pytest.mark.parametrize("answer,correct,scores,part", [
    ("x", 0.5, {}, "correct 0.5; give 1, 0, or None"), ("x", float("nan"), {}, "correct nan"),
    (3, 1, {}, "the answer 3"),
    ("x", 1, {"e": float("inf")}, "score e = inf; give a finite number"), ("x", 1, {"e": None}, "score e = None"),
    ("x", 1, {"accuracy": 1.0}, "score named 'accuracy'; give it a name besides"), ("x", 1, {3: 1.0}, "score named 3"),
])
def test_a_grade_is_checked(answer, correct, scores, part):
    with pytest.raises(UserError, match=part):
        Grade(answer, correct, scores)


def test_what_a_table_shows():
    assert TRIVIA.metrics == {"accuracy": "EM", "f1": "F1"} and list(TRIVIA.metrics) == ["accuracy", "f1"]
    docs = [CHOICE, replace(CHOICE, options=("p", "q", "r", "s"))]
    for name in DATASETS:
        task = get_task(name)
        assert next(iter(task.metrics)) == ("perplexity" if name in ("wikitext2", "c4", "file") else "accuracy")
        assert task.chance(docs) == (0.375 if task.kind == "choice" else None)
    for name in ("trivia_qa", "mmlu_pro", "code_mmlu"):
        assert get_task(name).stop == ("\n",) and get_task(name).max_new_tokens is None


def test_the_oracles_number_is_the_tasks():
    def sample(correct, f1):
        return Sample(doc_id="d", prompt="", gold="", text="", answer="", correct=correct, f1=f1, choice_logprobs=None,
                      gold_loglik=-1.0, n_prompt=1, n_new=1, truncated=False)

    for task, samples in ((TRIVIA, [sample(1.0, 1.0), sample(0.0, 0.3), sample(0.0, 0.1)]),
                          (PRO, [sample(1.0, None), sample(0.0, None), sample(1.0, None)])):
        assert float(np.mean([task.score(s) for s in samples])) == mean_task_metric(samples, task.score)[0]


def test_the_engine_names_no_data_set_and_no_metric():
    for path in (Path(__file__).resolve().parents[2] / "evaluation/engine").glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.value for node in nodes if isinstance(node, ast.Constant)}
        names |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not names & {*DATASETS, "f1", "accuracy", "exact_match", "token_f1", "extract"}, path


# ---- where an answer ends

def newline_rule(tokenizer, ids: list[int]) -> int:
    """The rule of the first version, a row ends with the first token that holds a newline or is EOS: how many stay."""
    for count, token in enumerate(ids, start=1):
        if token == tokenizer.eos_token_id or "\n" in tokenizer.decode([token]):
            return count
    return len(ids)


def ending(stopping: Stopping, ids: list[int]) -> int:
    return next((count for count in range(1, len(ids) + 1) if stopping.ended(ids[:count])), len(ids))


def merging_tokenizer():
    """Some tokens hold several characters, and a newline with its neighbours."""
    from tests.evaluation.test_calibration import spaced_tokenizer

    return spaced_tokenizer(merges=[("Ċ", "Ċ"), (".", "Ċ"), ("a", "b"), ("Ã", "©")])


@pytest.mark.parametrize("make", [byte_tokenizer, merging_tokenizer])
def test_a_newline_ends_a_row_as_it_always_did(make):
    tokenizer, rng = make(), np.random.default_rng(0)
    usual = tokenizer(["ab. \nSt\n\nQ é.\n"], add_special_tokens=False)["input_ids"][0]
    for _ in range(300):
        ids = [int(i) for i in rng.choice([*usual, *range(len(tokenizer))], size=30)]
        stopping = Stopping(None, tokenizer, ("\n",))
        count = ending(stopping, ids)
        assert count == newline_rule(tokenizer, ids)
        assert stopping.text(ids[:count]) == tokenizer.decode(ids[:count], skip_special_tokens=True).split("\n", 1)[0]


@pytest.mark.parametrize("make", [byte_tokenizer, merging_tokenizer])
@pytest.mark.parametrize("stop,text,written,left", [
    (("\n\n",), "one\ntwo\n\nthree", "one\ntwo\n\n", "one\ntwo"), (("Q:", "A:"), "x A: y Q: z", "x A:", "x "),
    (("END", "\n"), "EN END\n", "EN END", "EN "), (("END", "\n"), "EN\nEND", "EN\n", "EN"),
    (("é",), "caffè é!", "caffè é", "caffè "), (("日本",), "日日本語", "日日本", "日"),  # characters of several bytes
    (("abab",), "aababab", "aabab", "a"), ((), "a\nb", "a\nb", "a\nb"), (("zz",), "abc", "abc", "abc"),
    (("ab", "b"), "xab", "xab", "x"),  # the first to begin, not the first to be listed
])
def test_stop_texts_of_any_length(make, stop, text, written, left):
    tokenizer = make()
    ids = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    stopping = Stopping(None, tokenizer, stop)
    ids = ids[:ending(stopping, ids)]
    assert tokenizer.decode(ids) == written and stopping.text(ids) == left


def test_a_token_may_hold_more_than_the_stop_text():
    tokenizer = merging_tokenizer()
    ids = tokenizer(["x.\ny"], add_special_tokens=False)["input_ids"][0]
    stopping = Stopping(None, tokenizer, ("\n",))
    assert len(ids) == 3 and ending(stopping, ids) == 2 and stopping.text(ids[:2]) == "x."


def test_an_end_of_sequence_token_always_ends_a_row(tok):
    ids = [*tok("ab")["input_ids"], tok.eos_token_id, *tok("c")["input_ids"]]
    model = type("M", (), {"generation_config": type("G", (), {"eos_token_id": [tok.bos_token_id, 7]})})
    for stop in ((), ("zz",)):
        assert ending(Stopping(None, tok, stop), ids) == 3 and Stopping(None, tok, stop).text(ids[:3]) == "ab"
        assert ending(Stopping(model, tok, stop), [5, 7, 5]) == 2 == ending(Stopping(model, tok, stop), [5, 1, 5])


class Scripted:
    """A model that writes fixed texts, one a batch row, whatever it reads; its cache knows which rows are left."""

    def __init__(self, scripts: list[list[int]], vocabulary: int):
        self.scripts, self.vocabulary, self.batches = scripts, vocabulary, []

    def state(self) -> State:
        cache = type("Cache", (), {})()
        cache.layers = [Layer(list(range(len(self.scripts))))]
        ones = torch.ones(len(self.scripts), 1, dtype=torch.long)
        return State(cache, ones, ones[:, 0], self.logits(cache, 0))

    def logits(self, cache, step: int) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([self.scripts[row][step] for row in cache.layers[0].rows]),
                                           self.vocabulary).float()

    def forward(self, input_ids, attention_mask, past_key_values, use_cache, position_ids):
        raise AssertionError

    def __call__(self, input_ids, attention_mask, past_key_values, use_cache, position_ids):
        self.batches.append(len(input_ids))
        logits = self.logits(past_key_values, attention_mask.shape[1] - 1)[:, None]
        return type("Out", (), {"logits": logits, "past_key_values": past_key_values})


class Layer:
    is_sliding = False

    def __init__(self, rows):
        self.rows = rows

    def batch_select_indices(self, keep):
        self.rows = [self.rows[i] for i in keep.tolist()]


def test_rows_with_stop_texts_of_several_tokens_leave_the_batch(tok):
    texts = ["1\n2\n\n3 and on", "yes. Question: no", "\n\n and so on and on", "a text that never ends"]
    ids = tok(texts, add_special_tokens=False)["input_ids"]
    model = Scripted([row[:16] for row in ids], len(tok))
    stopping = Stopping(model, tok, ("\n\n", "Question:"))
    written = greedy(model, model.state(), 16, stopping)
    assert [tok.decode(row) for row in written] == ["1\n2\n\n", "yes. Question:", "\n\n", "a text that neve"]
    assert [stopping.text(row) for row in written] == ["1\n2", "yes. ", "", "a text that neve"]
    assert model.batches == [4, 4, 4, 4, *[2] * 9, 1, 1]


# ---- what a task may do differently: each is one method or one field

class Within(Task):
    """Right if within one of the gold number."""

    stop = ("\n\n",)
    metrics = {"accuracy": "±1", "error": "error"}

    def grade(self, doc, text):
        error = abs(len(text) - float(doc.gold))
        return Grade(text, error <= 1, {"error": error})


def test_an_open_task_with_its_own_metric(tok):
    task, model = Within("within", TRIVIA.source), tiny_model("llama")
    cfg = EvalConfig("generate", max_new_tokens=5)
    docs = [Doc("a", "q", gold="5"), Doc("b", "what is it", gold="50")]
    requests = build_requests(task, docs, [], tok, cfg=cfg)
    samples = run_batch(model, tok, task, requests, cfg=cfg)
    for sample, request in zip(samples, requests, strict=True):
        (alone,) = run_batch(model, tok, task, [request], cfg=cfg)
        assert (sample.text, sample.scores) == (alone.text, alone.scores) and sample.f1 is None
        assert sample.scores == {"error": abs(len(sample.text) - float(sample.gold))}
        assert sample.metric("error") == sample.scores["error"] and sample.correct == (sample.scores["error"] <= 1)
    out = summarise(samples)
    assert out["error"].value == sum(s.scores["error"] for s in samples) / 2 and out["f1"] is None
    assert task.score(samples[1]) == samples[1].correct == 0


class OwnExamples(ChoiceTask):
    """Examples of the document's own stratum, from elsewhere (mmlu takes them from its dev split)."""

    def exemplars(self, doc, pool, count):
        return [Doc(f"dev-{i}", f"example {i} of {doc.stratum}", options=("p", "q"), gold="A", gold_index=0)
                for i in range(count)]

    def whole_prompt(self, doc, examples, scoring):
        return f"About {doc.stratum}.\n\n" + super().whole_prompt(doc, examples, scoring)


def test_a_task_may_bring_its_own_examples_and_a_head(tok):
    docs = [replace(CHOICE, doc_id=s, stratum=s) for s in ("law", "art")]
    requests = build_requests(OwnExamples("own", PRO.source), docs, [], tok, cfg=EvalConfig("letter", num_fewshot=2))
    for request in requests:
        name = request.doc.stratum
        worked = "".join(f"Question: example {i} of {name}\nA. p\nB. q\nAnswer: A\n\n" for i in range(2))
        assert tok.decode(request.context) == f"About {name}.\n\n{worked}Question: what\nA. one\nB. three\nAnswer:"


class Joined(Task):
    """Prompt and answer are one text (lambada)."""

    joiner = ""

    def prompt(self, doc, scoring):
        return doc.question


def test_prompt_and_answer_may_be_joined_without_a_space(tok):
    task, doc = Joined("joined", TRIVIA.source), Doc("d", "He opened the", gold=" door")
    shot = Doc("s", "She closed the", gold=" book")
    (request,) = build_requests(task, [doc], [shot], tok, cfg=EvalConfig("generate", num_fewshot=1))
    assert tok.decode(request.context) == "She closed the book\n\nHe opened the" and tok.decode(request.gold) == " door"
    (worked,) = worked_documents(task, [doc], tok, scoring="generate", max_length=99, chat=False, loss="answer")
    assert tok.decode(worked.tokens) == "He opened the door" and tok.decode(worked.tokens[worked.loss_mask]) == " door"


class TwoMetrics(ChoiceTask):
    """Options compared by their sums and, as a further metric, by the byte."""

    metrics = {"accuracy": "acc", "acc_norm": "acc norm"}

    def lengths(self, doc, scoring):
        return (1,) * len(doc.options)

    def grade_options(self, doc, logprobs, scoring):
        grade = super().grade_options(doc, logprobs, scoring)
        by_byte = [p / len(option.encode()) for p, option in zip(logprobs, doc.options, strict=True)]
        return replace(grade, scores={"acc_norm": by_byte.index(max(by_byte)) == doc.gold_index})


def test_a_choice_may_normalise_in_its_own_way(tok):
    task = TwoMetrics("two", PRO.source)
    grade = task.grade_options(CHOICE, (-1.0, -1.5), "cloze")
    assert (grade.answer, grade.correct, grade.fields()["scores"]) == ("A", 0, {"acc_norm": 1.0})
    cfg = EvalConfig("cloze")
    (sample,) = run_batch(tiny_model("llama"), tok, task, build_requests(task, [CHOICE], [], tok, cfg=cfg), cfg=cfg)
    assert sample.answer == "AB"[int(np.argmax(sample.choice_logprobs))] and set(sample.scores) == {"acc_norm"}
