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

from core.errors import DataError, UserError
from evaluation.data.documents import Doc
from evaluation.tasks.base import Task

SCORINGS = ("generate", "letter", "cloze")

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
