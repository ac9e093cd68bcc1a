"""The token sequences on which solvers build Hessians and gradients, drawn by a seed under a token budget.

    task        worked documents: prompt + " " + gold answer, shuffled, taken until the next would pass the budget
    c4          a random document of at least ``window`` tokens, one random window of it; ⌊budget / window⌋ times
    wikitext2   documents joined by a blank line, tokenised once; ⌊budget / window⌋ random windows
    mix:p       the first round(p · budget) tokens' worth from the task, the rest from c4

TaCQ (arXiv 2504.07389) and the GPTQ loaders it uses: budget 128 · 2048 = 262,144 tokens, window 2048; task
documents are neither padded nor joined; every token counts in the loss.  A larger budget with the same seed
contains the smaller one.

Deviations: numpy's generator, so the published draws are not reproduced; task documents longer than
``max_length`` are cut on the left and counted (published: whole); when a pool runs out, its last document
stays (published: dropped); a c4 document comes again only when no other is long enough (published: drawn with
replacement), and a window may end at the document's last token.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from core.digest import digest
from core.errors import DataError, UserError
from core.registry import did_you_mean
from core.types import CalibSet
from evaluation.requests import _render, cut_left, encode
from evaluation.tasks.base import Task

KINDS = ("task", "c4", "wikitext2", "mix")
LOSSES = ("all", "answer")
JOINT = "\n\n"
TOKENISED_AT_ONCE = 32  # documents; how many has no influence on what is drawn


class CalibChoice(NamedTuple):
    """Where the tokens come from."""

    kind: str  # one of KINDS
    share: float  # of the token budget that the task's own documents get, 0..1

    @property
    def text(self) -> str | None:
        """The general text that has to be loaded, if any."""
        return {"task": None, "mix": "c4"}.get(self.kind, self.kind)


class Piece(NamedTuple):
    """One sequence."""

    doc_id: str
    tokens: np.ndarray  # int64 [T]
    loss_mask: np.ndarray  # bool [T]
    truncated: bool


def parse_calib(text: str) -> CalibChoice:
    """Read "task", "c4", "wikitext2" or "mix:0.5"."""
    kind, colon, number = text.partition(":")
    if kind not in KINDS:
        raise UserError(f"unknown --calib {text!r}{did_you_mean(kind, KINDS)}; use task, c4, wikitext2 or mix:0.5")
    if kind != "mix":
        if colon:
            raise UserError(f"--calib {text!r} has a share, which only a mix has; write {kind} or mix:0.5")
        return CalibChoice(kind, 1.0 if kind == "task" else 0.0)
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:  # NaN too
        raise UserError(f"--calib {text!r} has no share of the task above 0 and below 1; write for example mix:0.5")
    return CalibChoice("mix", share)


def worked_documents(task: Task, docs, tokenizer, scoring: str, max_length: int, chat: bool, loss: str = "all") -> list[Piece]:
    """Return each document as it reads when answered rightly, tokenised by the rules of ``evaluation.requests``.

    ``loss`` "all": every token counts, "answer": those after the prompt's own.  Where the answer melts into
    the prompt, prompt and answer stand side by side as two encodings, which is also what the evaluation asks.
    """
    if loss not in LOSSES:
        raise UserError(f"unknown calibration loss {loss!r}{did_you_mean(loss, LOSSES)}; use one of: {', '.join(LOSSES)}")
    if not docs:
        raise UserError(f"{task.name} has no calibration documents; raise --calib_size or check the data source")
    lead = "" if chat else " "
    prompts = [_render(tokenizer, task.prompt(doc, scoring), chat) for doc in docs]
    answers = [lead + task.target(doc, scoring) for doc in docs]
    contexts = encode(tokenizer, prompts, special=not chat)
    wholes = encode(tokenizer, [p + a for p, a in zip(prompts, answers, strict=True)], special=not chat)
    pieces = []
    for doc, answer, context, whole in zip(docs, answers, contexts, wholes, strict=True):
        if len(whole) <= len(context):
            own = encode(tokenizer, [answer], special=False)[0]
            if not own:
                raise DataError(f"document {doc.doc_id!r} of {task.name} has an empty answer (0 tokens); "
                                "a worked document needs text, correct the row")
            whole = context + own
        kept = cut_left(whole, max_length, tokenizer)
        mask = _mask(whole, kept, len(context), loss, tokenizer)
        pieces.append(Piece(doc.doc_id, np.asarray(kept, dtype=np.int64), mask, len(kept) < len(whole)))
    return pieces


def _mask(whole: list[int], kept: list[int], prompt: int, loss: str, tokenizer) -> np.ndarray:
    """True on the kept tokens that count; a BOS that was kept in front is the prompt's."""
    if loss == "all":
        return np.ones(len(kept), dtype=bool)
    mask = (np.arange(len(whole)) >= prompt)[len(whole) - len(kept):]
    if prompt and whole[0] == kept[0] == tokenizer.bos_token_id:
        mask[0] = False
    return mask


def sample_task(worked: list[Piece], budget_tokens: int, seed: int) -> list[Piece]:
    """Shuffle by ``seed`` and take whole documents until the next would pass the budget; at least one."""
    _check_budget(budget_tokens)
    if not worked:
        raise UserError("there are no calibration documents to sample; raise --calib_size or check the data source")
    if all(len(piece.tokens) < 2 for piece in worked):
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


def sample_windows(texts: list[str], tokenizer, window: int, budget_tokens: int, seed: int, style: str) -> list[Piece]:
    """Return ⌊budget / window⌋ random windows of exactly ``window`` tokens; a budget below one window shortens it.

    ``style`` "c4": each from another document, tokenised only as far as needed; "wikitext2": from the joined text.
    """
    _check_budget(budget_tokens)
    length = min(window, budget_tokens)
    if length < 2:
        raise UserError(f"a calibration window of {length} token has no loss; raise --calib_window ({window}) or "
                        f"the tokens for {style} ({budget_tokens} of --calib_tokens) to at least 2")
    if style not in ("c4", "wikitext2"):
        raise UserError(f"unknown style of windows {style!r}{did_you_mean(style, KINDS)}; use c4 or wikitext2")
    draw = _windows_of_documents if style == "c4" else _windows_of_joined
    return draw(texts, tokenizer, length, budget_tokens // length, np.random.default_rng(seed))


def _windows_of_documents(texts, tokenizer, length: int, count: int, rng: np.random.Generator) -> list[Piece]:
    order = rng.permutation(len(texts))
    long, pieces, longest = [], [], 0
    for index, ids in _tokenised(texts, order, tokenizer):
        longest = max(longest, len(ids))
        if len(ids) >= length:
            long.append((f"c4:{index}", ids))
            pieces.append(_window(*long[-1], length, rng))
        if len(pieces) == count:
            return pieces
    if not long:
        raise _too_short("c4", f"the longest of {len(texts)} documents", longest, length)
    while len(pieces) < count:  # every long document was taken once: again, in the same order
        pieces.append(_window(*long[len(pieces) % len(long)], length, rng))
    return pieces


def _tokenised(texts, order, tokenizer) -> Iterator[tuple[int, list[int]]]:
    for start in range(0, len(order), TOKENISED_AT_ONCE):
        some = [int(i) for i in order[start:start + TOKENISED_AT_ONCE]]
        yield from zip(some, encode(tokenizer, [texts[i] for i in some]), strict=True)


def _windows_of_joined(texts, tokenizer, length: int, count: int, rng: np.random.Generator) -> list[Piece]:
    ids = encode(tokenizer, [JOINT.join(texts)])[0] if texts else []
    if len(ids) < length:
        raise _too_short("wikitext2", "the joined text", len(ids), length)
    ids = np.asarray(ids, dtype=np.int64)
    return [_window("wikitext2", ids, length, rng) for _ in range(count)]


def _window(name: str, ids, length: int, rng: np.random.Generator) -> Piece:
    start = int(rng.integers(len(ids) - length + 1))
    tokens = np.array(ids[start:start + length], dtype=np.int64)  # a copy: a view would hold the whole text
    return Piece(f"{name}@{start}", tokens, np.ones(length, dtype=bool), False)


def _too_short(name: str, what: str, longest: int, length: int) -> UserError:
    mend = f"lower --calib_window to at most {longest}" if longest > 1 else "check the data source, no --calib_window fits"
    return UserError(f"{what} of {name} has {longest} tokens, which is less than a calibration window of {length}; {mend}")


def _check_budget(budget_tokens: int) -> None:
    if budget_tokens < 1:
        raise UserError(f"the calibration budget is {budget_tokens} tokens; give --calib_tokens of at least 1, such as 262144")


def build_solver_calib(choice: CalibChoice, task: Task, docs, tokenizer, *, scoring: str, max_length: int, chat: bool, loss: str,
                       budget_tokens: int, window: int, seed: int, texts: Callable[[str], list[str]]) -> CalibSet:
    """Return the calibration set of ``choice``; ``texts`` is called with "c4" or "wikitext2", and only when needed."""
    _check_budget(budget_tokens)
    pieces: list[Piece] = []
    own = budget_tokens if choice.kind == "task" else round(choice.share * budget_tokens)
    if choice.kind in ("task", "mix"):
        pieces += sample_task(worked_documents(task, docs, tokenizer, scoring, max_length, chat, loss), max(own, 1), seed)
    if choice.text:
        pieces += sample_windows(texts(choice.text), tokenizer, window, max(budget_tokens - own, 1), seed, choice.text)
    names = {"task": task.name, "mix": f"{task.name}+c4"}
    template = {"choice": list(choice), "loss": loss if choice.kind in ("task", "mix") else "all"}
    if choice.kind in ("task", "mix"):
        template |= {"task": task.name, "version": task.version, "scoring": scoring, "chat": tokenizer.chat_template if chat else None}
    ids, tokens, masks, cut = zip(*pieces, strict=True)
    return CalibSet(names.get(choice.kind, choice.kind), ids, tokens, masks, seed, digest(template), sum(cut))


def calib_digest(calib: CalibSet) -> str:
    """Return what identifies the sequences: ids, tokens and masks."""
    return digest([list(calib.doc_ids), list(calib.tokens), list(calib.loss_mask)])
