"""The bridge against lm-evaluation-harness 0.4.13 itself, document by document, on the real model in float32.

The golden (tests/golden/lm_eval.jsonl.gz, by benchmarks/lm_eval_golden.py) holds what its own model class gave at batch
size 1.  The same rows are asked through our engine, in batches, as lm_eval:t_NAME and as our own task of that name.
The first 16 rows of each are asked; LM_EVAL_PARITY_ROWS=128 asks all.
"""

import gzip
import json
import os
from functools import lru_cache

import numpy as np
import pytest
import torch

from core.model import load_model
from core.types import ModelRef
from evaluation.data.sources import load_rows
from evaluation.data.splits import marked
from evaluation.engine.ask import evaluate
from evaluation.engine.prompts import EvalConfig, build_requests
from evaluation.statistics.summary import summarise
from evaluation.tasks import get_task
from evaluation.tasks.lm_eval import look_in
from tests.lm_eval_tasks import GOLDEN, OURS, ROLLING_LENGTH, filled

pytestmark = pytest.mark.real
ROWS = int(os.environ.get("LM_EVAL_PARITY_ROWS", "16"))
SLOW = {"t_gsm8k": 4, "t_wikitext": 16}  # a row of these takes as long as so many others
FEWSHOT = {"t_mmlu_abstract_algebra": 5, "t_mmlu_anatomy": 5, "t_gsm8k": 2}
CHOICES = [name for name in OURS if name not in ("t_gsm8k", "t_lambada_openai", "t_wikitext")]
BOUND = 1e-3  # nats


@lru_cache
def golden(name: str) -> tuple[list[dict], dict]:
    """The golden lines of the rows asked, a row's filters together, and the totals of all its rows."""
    lines = [line for line in map(json.loads, gzip.open(GOLDEN, "rt")) if line["task"] == name]
    asked = [line for line in lines if line.get("row", ROWS) < max(1, ROWS // SLOW.get(name, 1))]
    assert asked and len({line["row"] for line in asked}) <= ROWS
    return asked, lines[-1]["totals"]


@pytest.fixture(scope="module")
def tasks(shared, tmp_path_factory):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install -r requirements-lm-eval.txt")
    look_in(str(filled(tmp_path_factory.mktemp("lm_eval"), shared / "datasets")))
    yield
    look_in(None)


@pytest.fixture(scope="module")
def model(real_model):
    from transformers import AutoTokenizer

    return (load_model(str(real_model), ModelRef("m", "r", "float32"), torch.device("cpu")),
            AutoTokenizer.from_pretrained(real_model))


def asked_bridged(name: str, model, length: int = 8192):
    """The golden's rows through the bridge."""
    task, rows = get_task(f"lm_eval:{name}"), sorted({line["row"] for line in golden(name)[0]})
    part = task.loaded.config.test_split or task.loaded.config.validation_split
    docs = task.loaded.docs(task, part, task.loaded.task.eval_docs.select(range(rows[-1] + 1)))
    cfg = EvalConfig(task.scorings[0], num_fewshot=task.num_fewshot, max_length=length,
                     max_new_tokens=task.max_new_tokens)
    requests = build_requests(task, docs, (), model[1], cfg=cfg)
    return task, requests, evaluate(*model, task, requests, cfg)


def asked_own(name: str, model, shared):
    """The same rows as our own task asks them."""
    task, data = get_task(OURS[name]), shared / "datasets"
    rows = load_rows(task.source, "folder", data)
    if task.name == "mmlu":
        rows = [row for row in rows if row.get("subject") == name.removeprefix("t_mmlu_")]
    docs = [task.make_doc(rows[number]) for number in sorted({line["row"] for line in golden(name)[0]})]
    pool = task.docs(load_rows(task.example_source, "folder", data)) if task.example_source else []
    scoring = "letter" if task.name == "mmlu" else task.default_scoring(1)
    cfg = EvalConfig(scoring, num_fewshot=FEWSHOT.get(name, 0), max_length=8192, max_new_tokens=64)
    requests = build_requests(task, docs, marked(pool, "examples"), model[1], cfg=cfg)
    return task, requests, evaluate(*model, task, requests, cfg)


def differences(samples, lines) -> list[float]:
    """Of every option's log-probability."""
    return [float(np.abs(np.subtract(s.choice_logprobs, g["logliks"])).max())
            for s, g in zip(samples, lines, strict=True)]


def told(name: str, way: str, found: list[float]) -> None:
    """The numbers, for pytest -s; and the bound."""
    print(f"{name} {way}: {len(found)} documents, largest difference {max(found):.1e} nats")
    assert max(found) < BOUND


@pytest.mark.parametrize("name", CHOICES)
def test_choices(tasks, model, shared, name):
    lines, _ = golden(name)
    _, requests, samples = asked_bridged(name, model)
    assert [r.prompt_sha for r in requests] == [g["prompt"] for g in lines]
    told(name, "bridged", differences(samples, lines))
    for s, g in zip(samples, lines, strict=True):
        assert int(np.argmax(s.choice_logprobs)) == int(np.argmax(g["logliks"])) == "ABCDE".index(s.answer)
        assert s.correct == g["grades"]["acc"] and s.scores.get("acc_norm") == g["grades"].get("acc_norm")
    own, requests, samples = asked_own(name, model, shared)
    assert [r.prompt_sha for r in requests] == [g["prompt"] for g in lines]
    told(name, f"as {own.name}", differences(samples, lines))
    for s, g in zip(samples, lines, strict=True):
        assert s.correct == g["grades"]["acc_norm" if own.name != "mmlu" else "acc"]


def test_the_last_word(tasks, model, shared):
    lines, totals = golden("t_lambada_openai")
    _, requests, samples = asked_bridged("t_lambada_openai", model)
    assert [r.prompt_sha for r in requests] == [g["prompt"] for g in lines]
    told("t_lambada_openai", "bridged", [abs(s.scores["loglik"] - g["logliks"][0])
                                         for s, g in zip(samples, lines, strict=True)])
    assert [s.correct for s in samples] == [g["grades"]["acc"] for g in lines]
    task = get_task("lm_eval:t_lambada_openai")
    found = task.derived(summarise(samples))["perplexity"].value
    assert len(lines) < 128 or found == pytest.approx(totals["perplexity,none"], rel=1e-3)
    _, requests, samples = asked_own("t_lambada_openai", model, shared)
    told("t_lambada_openai", "as lambada_openai", [abs(s.scores["word_loglik"] - g["logliks"][0])
                                                   for s, g in zip(samples, lines, strict=True)])
    assert [s.correct for s in samples] == [g["grades"]["acc"] for g in lines]


def test_written_answers(tasks, model, shared):
    lines, _ = golden("t_gsm8k")
    said, last = ([g for g in lines if g["filter"] == key] for key in ("said", "last_number"))
    _, requests, samples = asked_bridged("t_gsm8k", model)
    assert [r.prompt_sha for r in requests] == [g["prompt"] for g in said]
    assert [s.text for s in samples] == [g["text"] for g in said]
    assert [s.correct for s in samples] == [g["grades"]["exact_match"] for g in said]
    assert [s.scores["exact_match,last_number"] for s in samples] == [g["grades"]["exact_match"] for g in last]
    _, requests, samples = asked_own("t_gsm8k", model, shared)
    assert [r.prompt_sha for r in requests] == [g["prompt"] for g in said]
    assert [s.text for s in samples] == [g["text"] for g in said]
    assert [s.scores["last_number"] for s in samples] == [g["grades"]["exact_match"] for g in last]
    print(f"t_gsm8k: {len(samples)} documents, same texts")


def test_rolling_text(tasks, model):
    lines, totals = golden("t_wikitext")
    task, requests, samples = asked_bridged("t_wikitext", model, ROLLING_LENGTH)
    assert len(requests) > len(lines)
    found, tokens = [], []
    for g in lines:
        own = [(r, s) for r, s in zip(requests, samples, strict=True) if s.doc_id.startswith(f"test/{g['row']}/")]
        tokens.append(sum(len(r.gold) for r, _ in own))
        found.append(abs(sum(s.scores["loglik"] for _, s in own) - g["logliks"][0]) / tokens[-1])
        for unit, metric in (("words", "word_perplexity"), ("bytes", "byte_perplexity")):
            assert sum(s.scores[unit] for _, s in own) == pytest.approx(g["grades"][metric][1])
    told("t_wikitext", f"bridged (a token, of {sum(tokens)})", found)
    derived = task.derived(summarise(samples))
    nats, words = (sum(g["grades"]["word_perplexity"][place] for g in lines) for place in (0, 1))
    assert derived["word_perplexity"].value == pytest.approx(np.exp(-nats / words), rel=1e-4)
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert ROWS < 128 or derived[metric].value == pytest.approx(totals[f"{metric},none"], rel=1e-4)
