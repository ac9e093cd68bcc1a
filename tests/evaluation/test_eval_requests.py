"""Prompts, tokens, truncation, batches, shared prefix: all without a model."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from core.batching import tails_padded
from core.errors import DataError, UserError
from evaluation.calibration.documents import build_calib
from evaluation.data.documents import Doc
from evaluation.engine.batches import batch_plan, request_cost, shared_prefix
from evaluation.engine.prompts import EvalConfig, Request, build_requests, cut_left
from evaluation.tasks import get_task

TEMPLATE = ("{% for m in messages %}<|u|>{{ m['content'] }}<|e|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|a|>{{ date_string }}\n{% endif %}")


def tiny_tokenizer(bos=False):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<s>", "</s>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tok.train_from_iterator(["Question: Answer: A B C D E\nA. \nB. \nC. Answer: A B C D"] * 20, trainer)
    if bos:
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="module")
def tok():
    return tiny_tokenizer()


def choice(i, question="what is it", options=("one thing", "two", "three more things")):
    return Doc(f"d{i}", f"{question} {i}", options=options, gold="B", gold_index=1, stratum="s")


def request(n, tails=(), gold=(1,), truncated=False, start=0):
    return Request(doc=choice(0), context=tuple(range(start, start + n)), continuations=tails, gold=gold,
                   prompt_sha="", truncated=truncated)


def test_prompts_verbatim():
    doc = Doc("d", " q? ", options=("x ", "y\n"), gold="B", gold_index=1)
    task = get_task("mmlu_pro")
    assert task.prompt(doc, "letter") == "Question:  q? \nA. x \nB. y\n\nAnswer:"
    assert task.prompt(doc, "cloze") == "Question:  q? \nAnswer:" and task.target(doc, "cloze") == "y\n"
    assert task.calib_prompt(doc) == task.prompt(doc, "letter")
    assert task.continuations(doc, "letter") == ("A", "B") and task.target(doc, "letter") == "B"
    assert get_task("trivia_qa").calib_prompt(doc) == "Question:  q? \nAnswer:"


def test_default_scoring_by_size():
    assert get_task("mmlu_pro").default_scoring(135_000_000) == "cloze"
    assert get_task("mmlu_pro").default_scoring(10**9) == "letter"
    assert get_task("trivia_qa").default_scoring(1) == "generate"


def test_continuations_are_suffixes_of_the_whole(tok):
    task, doc = get_task("mmlu_pro"), choice(0)
    r = build_requests(task, [doc], [], tok, cfg=EvalConfig("cloze"))[0]
    prompt = task.prompt(doc, "cloze")
    assert tok.decode(r.context) == prompt and r.prompt_sha == hashlib.sha256(prompt.encode()).hexdigest()[:16]
    assert [tok.decode(c) for c in r.continuations] == [f" {o}" for o in doc.options]
    assert r.gold == r.continuations[1] and task.lengths(doc, "cloze") == tuple(len(o) for o in doc.options)
    letters = build_requests(task, [doc], [], tok, cfg=EvalConfig("letter"))[0]
    assert all(len(c) == 1 for c in letters.continuations) and not letters.truncated


def test_bos_stands_once(tok):
    bos = tiny_tokenizer(bos=True)
    r = build_requests(get_task("mmlu_pro"), [choice(0)], [], bos, cfg=EvalConfig("cloze"))[0]
    assert r.context[0] == 0 and r.context.count(0) == 1 and all(0 not in c for c in r.continuations)
    chat = build_requests(get_task("mmlu_pro"), [choice(0)], [], bos, cfg=EvalConfig("cloze", chat_template=True))[0]
    assert 0 not in chat.context  # the template has the last word on special tokens
    cut = build_requests(get_task("mmlu_pro"), [choice(0)], [], bos, cfg=EvalConfig("cloze", max_length=9))[0]
    assert cut.context[0] == 0 and len(cut.context) == 9 and cut.context[1:] == r.context[-8:]


def test_trap_4_truncation_keeps_the_end_and_is_counted(tok):
    doc = choice(0, question="very long question " * 50)
    r = build_requests(get_task("mmlu_pro"), [doc, choice(1)], [], tok, cfg=EvalConfig("letter", max_length=64))
    assert [x.truncated for x in r] == [True, False] and len(r[0].context) == 64
    assert tok.decode(r[0].context).endswith("\nAnswer:")
    calib = build_calib(get_task("mmlu_pro"), [doc, choice(1)], tok, max_length=64, chat_template=False, seed=3)
    assert calib.truncated == 1 and len(calib.tokens[0]) == 64
    assert tok.decode(calib.tokens[0].tolist()).endswith("Answer:")


def test_trap_5_chat_template(tok):
    doc = choice(0)
    task = get_task("mmlu_pro")
    r = build_requests(task, [doc], [], tok, cfg=EvalConfig("letter", chat_template=True))[0]
    # the date does not move
    assert tok.decode(r.context) == f"<|u|>{task.prompt(doc, 'letter')}<|e|>\n<|a|>26 Jul 2024\n"
    assert [tok.decode(c) for c in r.continuations] == ["A", "B", "C"]
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        build_requests(task, [doc], [], bare, cfg=EvalConfig("letter", chat_template=True))


def test_fewshot(tok):
    task, docs = get_task("mmlu_pro"), [choice(i) for i in range(5)]
    r = build_requests(task, docs[:1], docs[1:], tok, cfg=EvalConfig("letter", num_fewshot=2))[0]
    shots = "".join(task.prompt(d, "letter") + " B\n\n" for d in docs[3:])
    assert tok.decode(r.context) == shots + task.prompt(docs[0], "letter")
    cloze = build_requests(task, docs[:1], docs[1:], tok, cfg=EvalConfig("cloze", num_fewshot=1))[0]
    assert tok.decode(cloze.context).startswith(task.prompt(docs[4], "cloze") + " two\n\n")
    with pytest.raises(UserError, match="only 1 calibration"):
        build_requests(task, docs[:1], docs[1:2], tok, cfg=EvalConfig("letter", num_fewshot=2))
    with pytest.raises(DataError, match="'d4' is an exemplar"):
        build_requests(task, docs, docs, tok, cfg=EvalConfig("letter", num_fewshot=1))


def test_tokenizer_is_left_as_found(tok):
    tok.padding_side = "right"
    before = (tok.padding_side, tok.truncation_side, tok.backend_tokenizer.to_str())
    build_requests(get_task("mmlu_pro"), [choice(0)], [], tok,
                   cfg=EvalConfig("letter", chat_template=True, max_length=8))
    build_calib(get_task("mmlu_pro"), [choice(0)], tok, max_length=8, chat_template=True, seed=0)
    assert before == (tok.padding_side, tok.truncation_side, tok.backend_tokenizer.to_str())


def test_calib_set(tok):
    docs = [choice(i) for i in range(3)]
    calib = build_calib(get_task("mmlu_pro"), docs, tok, max_length=512, chat_template=False, seed=42)
    assert calib.task == "mmlu_pro" and calib.doc_ids == ("d0", "d1", "d2")
    assert calib.seed == 42 and calib.truncated == 0
    for doc, tokens, mask in zip(docs, calib.tokens, calib.loss_mask, strict=True):
        assert tokens.dtype == np.int64 and mask.dtype == bool and mask.all() and mask.shape == tokens.shape
        assert tok.decode(tokens.tolist()) == get_task("mmlu_pro").prompt(doc, "letter")  # no gold
    chat = build_calib(get_task("mmlu_pro"), docs, tok, max_length=512, chat_template=True, seed=42)
    assert calib.template != chat.template


def test_config_and_scoring_errors(tok):
    for bad in ({"scoring": "guess"}, {"scoring": "letter", "batch_size": 0}, {"scoring": "letter", "max_length": 4}):
        with pytest.raises(UserError):
            EvalConfig(**bad)
    with pytest.raises(UserError, match="does not fit trivia_qa"):
        build_requests(get_task("trivia_qa"), [], [], tok, cfg=EvalConfig("letter"))
    chatless = choice(0, options=("x", ""))
    with pytest.raises(DataError, match="empty answer"):
        build_requests(get_task("mmlu_pro"), [chatless], [], tok, cfg=EvalConfig("cloze", chat_template=True))


def test_cut_left_without_bos(tok):
    assert cut_left([5, 6, 7, 8], 3, tok) == [6, 7, 8] and cut_left([5, 6], 3, tok) == [5, 6]


@given(lengths=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 5), st.integers(1, 20)), max_size=40),
       budget=st.integers(1, 2000),
       size=st.none() | st.integers(1, 7))
def test_batch_plan_properties(lengths, budget, size):
    requests = [request(n, tuple((1,) * t for _ in range(k))) for n, k, t in lengths]
    cfg = EvalConfig("letter", batch_tokens=budget, batch_size=size)
    plan = batch_plan(requests, cfg)
    assert plan == batch_plan(requests, cfg)
    flat = [i for batch in plan for i in batch]
    assert sorted(flat) == list(range(len(requests)))
    assert flat == sorted(range(len(requests)), key=lambda i: (-len(requests[i].context), i))  # longest first, stable
    for batch in plan:
        costs = [request_cost(requests[i], cfg) for i in batch]
        real = sum(sum(len(c) - 1 for c in requests[i].continuations) or cost[2] for i, cost in zip(batch, costs))
        padded = (len(batch) * max(c[0] for c in costs)
                  + tails_padded(sum(c[1] for c in costs), max(c[2] for c in costs), real))
        assert len(batch) == 1 or size is not None or padded <= budget
        assert size is None or len(batch) == size or batch == plan[-1]


def test_shared_prefix():
    third = Request(doc=choice(0), context=(*range(39), 7, 8, 9, 10), continuations=(), gold=(1,), prompt_sha="",
                    truncated=False)
    common = [request(40), request(50), third]
    assert shared_prefix(common) == 39
    assert shared_prefix(common[:2]) == 39  # one token of the shortest stays outside
    assert shared_prefix([request(32), request(60)]) == 0 and shared_prefix([request(33), request(60)]) == 32
    assert shared_prefix(common, EvalConfig("letter", batch_size=1)) == 0
    assert shared_prefix([*common, request(60, start=9, truncated=True)]) == 39
    assert shared_prefix([]) == 0 and shared_prefix([request(50)]) == 0
