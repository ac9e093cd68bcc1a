"""Prompts as tokens, and which of them share a batch.

A continuation's tokens are encode(context + continuation) after the first len(encode(context)), so they
are the tokens the model would have seen, not those of the continuation on its own.  Without a chat
template an answer follows after one space; after a template's generation prompt it follows at once.
A context longer than ``max_length`` loses tokens on the left, so that "Answer:" stays, and is counted.

The batch plan is a pure function of the requests and the config.  bf16 log-probabilities move by up to
0.6 nats with the shape of the batch, so the plan belongs to the identity of the samples.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from core.digest import digest
from core.errors import DataError, UserError
from core.types import CalibSet
from evaluation.tasks.base import Doc, Task

SCORINGS = ("generate", "letter", "cloze")
MIN_PREFIX = 32  # tokens; below it the expanded cache costs more than it saves
# Templates that print today's date or switch on a thinking block would change the prompt behind our back
CHAT_OPTIONS = {"date_string": "26 Jul 2024", "enable_thinking": False}


@dataclass(frozen=True)
class EvalConfig:
    """How documents are put to the model; every field changes the samples."""

    scoring: str
    num_fewshot: int = 0
    chat_template: bool = False
    max_length: int = 512  # tokens of the context
    max_new_tokens: int = 32
    batch_tokens: int = 4096  # padded tokens a batch
    batch_size: int | None = None  # requests a batch; None = by batch_tokens

    def __post_init__(self):
        if self.scoring not in SCORINGS:
            raise UserError(f"unknown scoring {self.scoring!r}; use one of: {', '.join(SCORINGS)}")
        limits = {"num_fewshot": 0, "max_length": 8, "max_new_tokens": 1, "batch_tokens": 1}
        limits |= {"batch_size": 1} if self.batch_size is not None else {}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class Request:
    """One document ready to run."""

    doc: Doc
    context: tuple[int, ...]  # token ids
    continuations: tuple[tuple[int, ...], ...]  # token ids of each option; empty for open questions
    lengths: tuple[int, ...]  # characters of each option, without the leading space
    gold: tuple[int, ...]  # token ids of the gold continuation
    prompt_sha: str  # sha256 of the prompt text, first 16 hex digits
    truncated: bool


def build_requests(task: Task, docs, exemplars, tokenizer, cfg: EvalConfig) -> list[Request]:
    """Tokenise ``docs``; the last ``cfg.num_fewshot`` of ``exemplars`` (calibration documents) stand before each."""
    if cfg.scoring not in task.scorings:
        raise UserError(f"scoring {cfg.scoring!r} does not fit {task.name}; use one of: {', '.join(task.scorings)}")
    shots = _shots(task, docs, exemplars, cfg)
    prompts = [_render(tokenizer, shots + task.prompt(doc, cfg.scoring), cfg.chat_template) for doc in docs]
    lead = "" if cfg.chat_template else " "
    texts, owners = [], []  # every context and every context + continuation, encoded in one go
    for index, (doc, prompt) in enumerate(zip(docs, prompts, strict=True)):
        answers = task.continuations(doc, cfg.scoring) or (task.target(doc, cfg.scoring),)
        texts += [prompt, *(prompt + lead + answer for answer in answers)]
        owners += [(index, None), *((index, answer) for answer in answers)]
    encoded = encode(tokenizer, texts, special=not cfg.chat_template)
    tails: list[list[tuple[int, ...]]] = [[] for _ in docs]
    contexts: list[list[int]] = [[] for _ in docs]
    for (index, answer), ids in zip(owners, encoded, strict=True):
        if answer is None:
            contexts[index] = ids
        else:  # a tokenizer that melts the answer into the context leaves no suffix: then its own tokens count
            tail = ids[len(contexts[index]):] or encode(tokenizer, [lead + answer], special=False)[0]
            if not tail:
                raise DataError(f"document {docs[index].doc_id!r} of {task.name} has an empty answer (0 tokens); "
                                "each option needs text, correct the row or use letter scoring")
            tails[index].append(tuple(tail))
    return [_request(task, doc, cfg, prompts[i], contexts[i], tails[i], tokenizer) for i, doc in enumerate(docs)]


def _request(task, doc, cfg, prompt, context, tails, tokenizer) -> Request:
    answers = task.continuations(doc, cfg.scoring)
    gold = tails[doc.gold_index] if answers else tails[0]
    kept = cut_left(context, cfg.max_length, tokenizer)
    sha = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    return Request(doc, tuple(kept), tuple(tails) if answers else (), tuple(len(a) for a in answers), gold, sha, len(kept) < len(context))


def _shots(task: Task, docs, exemplars, cfg: EvalConfig) -> str:
    if not cfg.num_fewshot:
        return ""
    if len(exemplars) < cfg.num_fewshot:
        raise UserError(f"num_fewshot is {cfg.num_fewshot} but there are only {len(exemplars)} calibration documents; lower it")
    chosen = exemplars[-cfg.num_fewshot:]
    both = {d.doc_id for d in chosen} & {d.doc_id for d in docs}
    if both:
        raise DataError(f"document {min(both)!r} is an exemplar and is evaluated; exemplars must be calibration documents")
    return "".join(f"{task.prompt(d, cfg.scoring)} {task.target(d, cfg.scoring)}\n\n" for d in chosen)


def _render(tokenizer, prompt: str, chat: bool) -> str:
    """Return the text to tokenise: the prompt itself, or a chat whose one user turn holds it."""
    if not chat:
        return prompt
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no chat template; run without --chat_template")
    turn = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **CHAT_OPTIONS)


def encode(tokenizer, texts: list[str], special: bool = True) -> list[list[int]]:
    """Token ids of each text; special tokens only at the front, where the tokenizer puts them by default."""
    if not texts:
        return []
    ids = tokenizer(texts, add_special_tokens=special, padding=False, truncation=False, verbose=False)["input_ids"]
    if special and tokenizer.eos_token_id is not None:  # a prompt that ends in EOS would be a closed text
        ids = [row[:-1] if len(row) > 1 and row[-1] == tokenizer.eos_token_id else row for row in ids]
    return ids


def cut_left(ids: list[int], max_length: int, tokenizer) -> list[int]:
    """Return at most ``max_length`` tokens, the last ones; a BOS in front stays."""
    if len(ids) <= max_length:
        return ids
    bos = tokenizer.bos_token_id
    if bos is not None and ids[0] == bos:
        return [bos, *ids[len(ids) - max_length + 1:]]
    return ids[-max_length:]


def request_cost(request: Request, cfg: EvalConfig) -> tuple[int, int, int]:
    """Return (context tokens, rows after it, tokens of the longest such row): what a request adds to a batch."""
    if request.continuations:
        longest = max(len(c) for c in request.continuations) - 1  # the first token is read off the context's last position
        return len(request.context), len(request.continuations), longest
    return len(request.context), 1, max(cfg.max_new_tokens, len(request.gold))


def batch_plan(requests, cfg: EvalConfig) -> tuple[tuple[int, ...], ...]:
    """Return the batches as indices into ``requests``: longest first, stable, each within the token budget."""
    costs = [request_cost(r, cfg) for r in requests]
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].context))
    if cfg.batch_size is not None:
        return tuple(tuple(order[i:i + cfg.batch_size]) for i in range(0, len(order), cfg.batch_size))
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    width = rows = tail = 0
    for i in order:
        w, r, t = max(width, costs[i][0]), rows + costs[i][1], max(tail, costs[i][2])
        if batch and (len(batch) + 1) * w + r * t > cfg.batch_tokens:
            batches.append(tuple(batch))
            batch, (w, r, t) = [], costs[i]
        batch.append(i)
        width, rows, tail = w, r, t
    return (*batches, tuple(batch)) if batch else tuple(batches)


def shared_prefix(requests, cfg: EvalConfig | None = None) -> int:
    """Return how many leading tokens all uncut contexts share; 0 below 32, and at batch size 1.

    At least one token of every context stays outside, because its logits are needed.  Cut contexts
    begin elsewhere; their batches run without the prefix.
    """
    contexts = [r.context for r in requests if not r.truncated]
    if len(contexts) < 2 or (cfg is not None and cfg.batch_size == 1):
        return 0
    first, last = min(contexts), max(contexts)  # in lexical order these two differ the earliest
    limit = min(len(c) for c in contexts) - 1
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), limit)
    return min(shared, limit) if min(shared, limit) >= MIN_PREFIX else 0


def build_calib(task: Task, docs, tokenizer, max_length: int, chat_template: bool, seed: int) -> CalibSet:
    """Return unlabeled calibration prompts; every token counts in a loss; long ones are cut on the left."""
    prompts = [_render(tokenizer, task.calib_prompt(doc), chat_template) for doc in docs]
    encoded = encode(tokenizer, prompts, special=not chat_template)
    tokens = tuple(np.asarray(cut_left(ids, max_length, tokenizer), dtype=np.int64) for ids in encoded)
    template = digest({"task": task.name, "version": task.version, "chat": tokenizer.chat_template if chat_template else None})
    truncated = sum(len(ids) > max_length for ids in encoded)
    masks = tuple(np.ones(len(t), dtype=bool) for t in tokens)
    return CalibSet(task.name, tuple(d.doc_id for d in docs), tokens, masks, seed, template, truncated)
