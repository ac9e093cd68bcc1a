"""Normalising, extraction and summaries; the traps of the published script, by number (methods/taq.md)."""

import json
from dataclasses import asdict
from functools import partial

import pytest

from core.errors import UserError
from core.registry import DATASETS
from core.sample import Sample
from evaluation.engine.prompts import EvalConfig, build_requests
from evaluation.grading import exact_match, extract, normalise, token_f1
from evaluation.statistics.summary import by_stratum, mean_task_metric, summarise
from evaluation.tasks import get_task
from evaluation.tasks.base import Task


def sample(doc_id="d", correct=1.0, f1=None, answer="A", loglik=-1.0, truncated=False, stratum=""):
    return Sample(doc_id=doc_id, prompt="", gold="A", text="", answer=answer, correct=correct, f1=f1,
                  choice_logprobs=None, gold_loglik=loglik, n_prompt=10, n_new=2, truncated=truncated, stratum=stratum)


@pytest.mark.parametrize("text,expected", [
    ("The  St. Louis Blues", "st louis blues"), ("A", ""), ("an apple-pie", "apple pie"), ("O’Neill", "o neill"),
    ("theatre_a", "theatre"),
    ("", ""), ("É", "é"),
])
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize("answer", [None, "", "   "])
def test_trap_2_an_empty_answer_is_never_right(answer):
    assert exact_match(answer, ("A", "a", "")) == 0.0 and token_f1(answer, ("A", "")) == 0.0


def test_trap_2_an_answer_of_articles_is_compared_as_written():
    assert exact_match("A", ("A",)) == 1.0 and exact_match("The", ("A",)) == 0.0 and token_f1("A", ("a",)) == 1.0


def test_trap_3_nothing_is_cut_at_a_full_stop():
    assert extract(" St. Louis") == "St. Louis" and exact_match(extract(" St. Louis"), ("St. Louis",)) == 1.0
    assert exact_match(extract(" St"), ("St. Louis",)) == 0.0


@pytest.mark.parametrize("text", ["", " ", "\n", " \n\t"])
def test_unparsed_is_none(text):
    assert extract(text) is None


def test_f1_takes_the_best_alias():
    assert token_f1("big red dog", ("cat", "red dog")) == pytest.approx(0.8)
    assert token_f1("cat cat", ("cat",)) == pytest.approx(2 / 3) and token_f1("x", ()) == 0.0


def test_trap_8_choices_are_never_read_out_of_free_text():
    """The script compares generated text with a gold letter, so "A. option text" is wrong; here options are scored."""
    for name in DATASETS:
        task = get_task(name)
        assert (task.kind == "generate") == ("generate" in task.scorings)
        if task.kind == "choice":
            with pytest.raises(UserError, match="scoring 'generate' does not fit"):
                build_requests(task, [], [], None, cfg=EvalConfig("generate"))


def test_summarise_counts_failures_and_truncation():
    samples = [sample(f1=1.0), sample(correct=0.0, f1=0.5, answer=None), sample(truncated=True, f1=0.0, correct=0.0),
               sample(f1=1.0)]
    out = summarise(samples)
    assert out["accuracy"].value == 0.5 and out["f1"].value == pytest.approx(0.625)
    assert out["parse_fail"].value == 0.25 and out["truncated"].value == 0.25
    assert out["accuracy"].low < 0.5 < out["accuracy"].high and out["gold_loglik"].value == -1.0
    json.dumps({name: asdict(interval) for name, interval in out.items()}, allow_nan=False)
    assert out == summarise(samples)


def test_no_data_is_none():
    out = summarise([])
    assert out and all(value is None for value in out.values())
    assert summarise([sample()])["f1"] is None
    assert all(x != x for x in mean_task_metric([], Task.score))


def test_mean_task_metric():
    score = partial(Task.score, None)
    assert mean_task_metric([sample(f1=0.5), sample(correct=0.0, f1=0.5, loglik=-3.0)], score) == (0.5, -2.0)
    assert mean_task_metric([sample(), sample(correct=0.0)], score)[0] == 0.5


def test_by_stratum():
    out = by_stratum([sample(stratum="b"), sample(stratum="a", correct=0.0), sample(stratum="b", correct=0.0)])
    assert list(out) == ["a", "b"] and out["b"].n == 2 and out["b"].accuracy.value == 0.5
