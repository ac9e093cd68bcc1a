"""Prompts for scorers as the evaluation asks: its scoring, its examples, no answer of their own."""

import pytest

from core.errors import UserError
from evaluation.calibration.documents import asked_calib, build_calib
from evaluation.data.documents import Doc
from evaluation.engine.prompts import EvalConfig, build_requests
from evaluation.tasks import get_task
from tests.tiny import byte_tokenizer


def documents(count: int) -> list[Doc]:
    return [Doc(f"d{i}", f"What is {i} plus one?", options=(f"{i + 1}", f"{i}"), gold="A", gold_index=0,
                aliases=(f"{i + 1}",)) for i in range(count)]


@pytest.mark.parametrize("name, cfg", [
    ("mmlu_pro", EvalConfig("cloze")), ("mmlu_pro", EvalConfig("letter", num_fewshot=2)),
    ("trivia_qa", EvalConfig("generate", num_fewshot=3))])
def test_they_are_the_contexts_of_the_evaluation(name, cfg):
    task, tokenizer, docs = get_task(name), byte_tokenizer(), documents(8)
    calib = asked_calib(task, docs, tokenizer, cfg=cfg, examples=None, seed=1)
    shots = cfg.num_fewshot
    assert calib.doc_ids == tuple(doc.doc_id for doc in docs[:8 - shots])
    requests = build_requests(task, docs[:8 - shots], docs[8 - shots:], tokenizer, cfg=cfg)
    assert [list(t) for t in calib.tokens] == [list(r.context) for r in requests]
    text = tokenizer.decode(calib.tokens[0])
    assert text.count("Answer:") == shots + 1 and text.rstrip().endswith("Answer:")
    published = build_calib(task, docs, tokenizer, max_length=512, chat_template=False, seed=1)
    assert calib.template != published.template and len(published.doc_ids) == 8


def test_too_few_documents_for_the_examples_are_refused():
    with pytest.raises(UserError, match="raise --calib_size"):
        asked_calib(get_task("trivia_qa"), documents(3), byte_tokenizer(), cfg=EvalConfig("generate", num_fewshot=3),
                    examples=None, seed=0)
