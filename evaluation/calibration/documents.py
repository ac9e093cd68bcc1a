"""Calibration out of a task's own documents: unlabeled prompts, and worked documents with their answers."""

from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from core.digest import digest
from core.errors import UserError, did_you_mean
from core.types import CalibSet
from evaluation.engine.prompts import (
    EvalConfig,
    answer_tokens,
    before_answer,
    build_requests,
    cut_left,
    encode,
    render,
)
from evaluation.tasks.base import Task

LOSSES = ("all", "answer")


class Tokens(NamedTuple):
    """One calibration sequence."""

    doc_id: str
    tokens: np.ndarray  # int64 [T]
    loss_mask: np.ndarray  # bool [T]
    truncated: bool


def worked_documents(task: Task, docs, tokenizer, *, scoring: str, max_length: int, chat: bool,
                     loss: str = "all") -> list[Tokens]:
    """Return each document as it reads when answered rightly, tokenised by the rules of ``evaluation.engine.prompts``.

    ``loss`` "all": every token counts, "answer": those after the prompt's own.  Where the answer melts into
    the prompt, prompt and answer stand side by side as two encodings, which is also what the evaluation asks.
    """
    if loss not in LOSSES:
        raise UserError(f"unknown calibration loss {loss!r}{did_you_mean(loss, LOSSES)}; "
                        f"use one of: {', '.join(LOSSES)}")
    if not docs:
        raise UserError(f"{task.name} has no calibration documents; raise --calib_size or check the data source")
    prompts = [render(tokenizer, task.prompt(doc, scoring), chat) for doc in docs]
    answers = [before_answer(task, chat) + task.target(doc, scoring) for doc in docs]
    contexts = encode(tokenizer, prompts, special=not chat)
    wholes = encode(tokenizer, [p + a for p, a in zip(prompts, answers, strict=True)], special=not chat)
    worked = []
    for doc, answer, context, whole in zip(docs, answers, contexts, wholes, strict=True):
        own = answer_tokens(task, doc, tokenizer, context=context, whole=whole, answer=answer)
        if len(whole) <= len(context):
            whole = [*context, *own]
        cut = cut_left(whole, max_length, tokenizer)
        mask = _mask(whole, cut, loss=loss, prompt=len(context), tokenizer=tokenizer)
        worked.append(Tokens(doc.doc_id, np.asarray(cut, dtype=np.int64), mask, len(cut) < len(whole)))
    return worked


def _mask(whole: list[int], cut: list[int], *, loss: str, prompt: int, tokenizer) -> np.ndarray:
    """True on the tokens of ``cut`` that count; a BOS that stayed in front is the prompt's."""
    if loss == "all":
        return np.ones(len(cut), dtype=bool)
    mask = (np.arange(len(whole)) >= prompt)[len(whole) - len(cut):]
    if prompt and whole[0] == cut[0] == tokenizer.bos_token_id:
        mask[0] = False
    return mask


def sample_task(worked: list[Tokens], budget_tokens: int, seed: int) -> list[Tokens]:
    """Shuffle by ``seed`` and take whole documents until the next would pass the budget; at least one."""
    check_budget(budget_tokens)
    if not worked:
        raise UserError("there are no calibration documents to sample; raise --calib_size or check the data source")
    if all(len(document.tokens) < 2 for document in worked):
        raise UserError(f"all {len(worked)} calibration documents have at most 1 token, and a loss needs 2; "
                        "raise --max_length or check the data source")
    taken, used = [], 0
    for index in np.random.default_rng(seed).permutation(len(worked)):
        size = len(worked[index].tokens)
        if taken and used + size > budget_tokens:
            break
        taken.append(worked[index])
        used += size
    return taken


def check_budget(budget_tokens: int) -> None:
    """Refuse a budget of no tokens."""
    if budget_tokens < 1:
        raise UserError(f"the calibration budget is {budget_tokens} tokens; "
                        "give --calib_tokens of at least 1, such as 262144")


def build_calib(task: Task, docs, tokenizer, max_length: int, chat_template: bool, seed: int) -> CalibSet:
    """Return unlabeled calibration prompts; every token counts in a loss; long ones are cut on the left."""
    prompts = [render(tokenizer, task.calib_prompt(doc), chat_template) for doc in docs]
    encoded = encode(tokenizer, prompts, special=not chat_template)
    tokens = tuple(np.asarray(cut_left(ids, max_length, tokenizer), dtype=np.int64) for ids in encoded)
    chat = tokenizer.chat_template if chat_template else None
    return CalibSet(task=task.name, doc_ids=tuple(doc.doc_id for doc in docs), tokens=tokens,
                    loss_mask=tuple(np.ones(len(t), dtype=bool) for t in tokens), seed=seed,
                    template=digest({"task": task.name, "version": task.version, "chat": chat}),
                    truncated=sum(len(ids) > max_length for ids in encoded))


def asked_calib(task: Task, docs, tokenizer, *, cfg: EvalConfig, examples, seed: int) -> CalibSet:
    """Return the prompts as the evaluation would put these documents to the model: its scoring and its examples.

    examples: what worked examples are taken from; None: the last of ``docs``, which are then no prompts themselves.
    """
    own = cfg.num_fewshot if examples is None else 0
    if own >= len(docs):
        raise UserError(f"{task.name} has {len(docs)} calibration documents, {own} of which would be examples; raise "
                        "--calib_size, or use --score_prompts published")
    prompts, pool = docs[:len(docs) - own], docs[len(docs) - own:] if examples is None else examples
    requests = build_requests(task, prompts, pool, tokenizer, cfg=cfg)
    tokens = tuple(np.asarray(request.context, dtype=np.int64) for request in requests)
    return CalibSet(task=task.name, doc_ids=tuple(request.doc.doc_id for request in requests), tokens=tokens,
                    loss_mask=tuple(np.ones(len(t), dtype=bool) for t in tokens), seed=seed,
                    template=digest({"task": task.name, "version": task.version, "asked": asdict(cfg)}),
                    truncated=sum(request.truncated for request in requests))
