"""A question of one's own, put to a model as it was loaded and to a quantized row of it."""

from __future__ import annotations

from datetime import UTC, datetime

import torch

from core.environment import versions
from core.errors import UserError
from evaluation.engine.generate import Stopping, greedy
from evaluation.engine.kv_cache import prefill
from evaluation.engine.prompts import encode, render
from harness.api import quantize
from harness.stages.activations import activations, kept
from quantization.activations import quantizing
from report.measured import GRID, Asked, checked_question

LONGEST_ANSWER = 64  # tokens


def ask(asked: dict, **machine) -> Asked:
    """Answer a question greedily by both models from the same prompt: the model's chat template where it has one, else
    "Question: ... Answer:".

    asked: "model", "method", "dataset", "avg_bits", "question", and the fields report.measured.GRID; machine: fields
    that say where and how it runs.  Raises UserError for what cannot be.
    """
    question = checked_question(asked["question"])
    grid = {name: asked[name] for name in GRID if name in asked} | machine
    small = quantize(asked["model"], asked["method"], asked["dataset"], asked["avg_bits"], **grid)
    case, tokenizer = small.case, small.tokenizer
    chat = bool(getattr(tokenizer, "chat_template", None))
    prompt = question if chat else f"Question: {question}\nAnswer:"
    ids = encode(tokenizer, [render(tokenizer, prompt, chat)], special=not chat)[0]
    room = getattr(small.model.config, "max_position_embeddings", None)
    if room and len(ids) + LONGEST_ANSWER > room:
        raise UserError(f"the question has {len(ids):,} tokens and an answer up to {LONGEST_ANSWER}, but the model "
                        f"takes {room:,}; ask a shorter one")
    with quantizing(small.model, activations(case), kept(case)):
        quantized = _answer(small.model, tokenizer, ids)
    case.model.originals.restore()
    return Asked(asked=asked, model=case.model.ref.name, revision=case.model.ref.revision, method=case.method.name,
                 dataset=case.cell.dataset, average=small.bits.average, question=question,
                 prompt=render(tokenizer, prompt, chat), loaded=_answer(small.model, tokenizer, ids),
                 quantized=quantized, tokens=len(ids), longest=LONGEST_ANSWER, versions=versions(),
                 made=datetime.now(UTC).isoformat(timespec="seconds"))


@torch.inference_mode()
def _answer(model, tokenizer, ids: list[int]) -> str:
    stopping = Stopping(model, tokenizer, ())
    written = greedy(model, prefill(model, [tuple(ids)]), LONGEST_ANSWER, stopping)[0]
    return stopping.text(written).strip()
