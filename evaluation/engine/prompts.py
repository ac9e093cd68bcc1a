"""Documents as tokens: a context, and the answers that may follow it.

An answer's tokens are encode(context + answer) after the first len(encode(context)), so they are the tokens the model
would have seen, not those of the answer on its own.  Between the two stands the task's joiner (one space); after a chat
template's generation prompt the answer follows at once.  A context longer than ``max_length`` loses tokens on the left,
so that "Answer:" stays, and is counted.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import DataError, UserError, one_line
from evaluation.data.documents import Doc
from evaluation.tasks.base import Task

SCORINGS = ("generate", "letter", "cloze", "likelihood", "given")

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
    gold: tuple[int, ...]  # token ids of the gold answer
    prompt_sha: str  # sha256 of the prompt text, first 16 hex digits
    truncated: bool
    others: tuple[tuple[int, ...], ...] = ()  # contexts of the further continuations, where each has one of its own

    @property
    def contexts(self) -> tuple[tuple[int, ...], ...]:
        """All that must be run before answers: one context, or one for each continuation."""
        return (self.context, *self.others)


def build_requests(task: Task, docs, exemplars, tokenizer, cfg: EvalConfig) -> list[Request]:
    """Tokenise ``docs``; before each stand ``cfg.num_fewshot`` worked examples, as a rule out of ``exemplars``."""
    if cfg.scoring not in task.scorings:
        raise UserError(f"scoring {cfg.scoring!r} does not fit {task.name}; use one of: {', '.join(task.scorings)}")
    if docs and (own := task.requests(docs, tokenizer, cfg)) is not None:
        return own
    prompts = [render(tokenizer, text, cfg.chat_template) for text in _whole_prompts(task, docs, exemplars, cfg)]
    lead = before_answer(task, cfg.chat_template)
    answers = [[lead + text for text in task.continuations(doc, cfg.scoring) or (task.target(doc, cfg.scoring),)]
               for doc in docs]
    texts = [prompt + end for prompt, ends in zip(prompts, answers, strict=True) for end in ("", *ends)]
    encoded = iter(encode(tokenizer, texts, special=not cfg.chat_template))  # in one go
    requests = []
    for doc, prompt, ends in zip(docs, prompts, answers, strict=True):
        context = next(encoded)
        tails = [answer_tokens(task, doc, tokenizer, context=context, whole=next(encoded), answer=end) for end in ends]
        requests.append(_request(task, doc, prompt, context=cut_left(context, cfg.max_length, tokenizer), tails=tails,
                                 truncated=len(context) > cfg.max_length))
    return requests


def _request(task: Task, doc: Doc, prompt: str, *, context, tails, truncated: bool) -> Request:
    choice = task.kind == "choice"
    return Request(doc=doc, context=tuple(context), continuations=tuple(tails) if choice else (),
                   gold=tails[doc.gold_index if choice else 0], truncated=truncated,
                   prompt_sha=hashlib.sha256(prompt.encode()).hexdigest()[:16])


def answer_tokens(task: Task, doc: Doc, tokenizer, *, context: list[int], whole: list[int],
                  answer: str) -> tuple[int, ...]:
    """Return the tokens of ``whole`` (context + answer) after the context's.

    A tokenizer that melts the answer into the context leaves none: then the answer's own tokens count.
    """
    tokens = whole[len(context):] or encode(tokenizer, [answer], special=False)[0]
    if not tokens:
        raise DataError(f"document {doc.doc_id!r} of {task.name} has an empty answer (0 tokens); "
                        "an answer needs text, correct the row")
    return tuple(tokens)


def _whole_prompts(task: Task, docs, exemplars, cfg: EvalConfig) -> list[str]:
    asked = {doc.doc_id for doc in docs}
    prompts = []
    for doc in docs:
        examples: Sequence[Doc] = task.exemplars(doc, exemplars, cfg.num_fewshot)
        if len(examples) < cfg.num_fewshot:
            raise UserError(f"num_fewshot is {cfg.num_fewshot} but there are "
                            f"only {len(examples)} calibration documents; lower it")
        both = {example.doc_id for example in examples} & asked
        if both:
            raise DataError(f"document {min(both)!r} is an exemplar and is evaluated; "
                            "exemplars must be calibration documents")
        prompts.append(task.whole_prompt(doc, examples, cfg.scoring))
    return prompts


def before_answer(task: Task, chat: bool) -> str:
    """Return the text between a prompt and its answer."""
    return "" if chat else task.joiner


def render(tokenizer, prompt: str, chat: bool) -> str:
    """Return the text to tokenise: the prompt itself, or a chat whose one user turn holds it."""
    if not chat:
        return prompt
    name = tokenizer.name_or_path
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"tokenizer {name!r} has no chat template; run without --chat_template")
    turn = [{"role": "user", "content": prompt}]
    try:
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **CHAT_OPTIONS)
    except Exception as error:  # a template is a program of its own, so it may raise anything
        raise UserError(f"the chat template of tokenizer {name!r} fails ({one_line(error)}); "
                        "mend it, or run without --chat_template") from None
    if prompt.strip() not in text:  # some templates strip the message
        raise UserError(f"the chat template of tokenizer {name!r} leaves the message out or changes it; "
                        "mend it, or run without --chat_template")
    return text


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
