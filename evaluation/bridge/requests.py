"""Prompts and answers of a bridged task as the tokens that lm-evaluation-harness itself would see.

White space that ends a prompt goes to its answers; an empty prompt is the token that begins texts (else the one that
ends them); a prompt loses tokens on the left only where it and its answer pass the model's limit.
A rolling text is cut into windows of the limit that do not overlap; the first begins with that token, each further one
with the token before it, and the last reaches back until it is full.
"""

import hashlib
from dataclasses import replace
from operator import gt

from core.errors import DataError, UserError
from evaluation.data.documents import Doc
from evaluation.engine.prompts import EvalConfig, Request, encode

SHOWN = 200  # tokens of a window's text that people are shown


def requests(task, docs, tokenizer, cfg: EvalConfig) -> list[Request]:
    """A request for each document, or for each window of it."""
    if cfg.chat_template:
        raise UserError(f"{task.name} is asked with the prompts of lm-evaluation-harness, which have no chat template "
                        "here; run it without --chat_template on")
    loaded = task.loaded
    asked = loaded.asked(docs, cfg.num_fewshot)
    if task.output_type == "loglikelihood_rolling":
        return [window for doc in docs for window in _windows(loaded, doc, tokenizer, cfg.max_length)]
    built = []
    for doc in docs:
        pairs = [one.args for one in asked[doc.doc_id]]
        if task.kind == "generate":
            pairs = [(pairs[0][0], loaded.config.target_delimiter + doc.gold)]
        built.append(_request(task, doc, pairs, tokenizer=tokenizer, cfg=cfg))
    return built


def _request(task, doc: Doc, pairs: list[tuple[str, str]], *, tokenizer, cfg: EvalConfig) -> Request:
    """``pairs``: a prompt and what may follow it; several prompts where each option makes one of its own."""
    written, choice = task.kind == "generate", task.kind == "choice"
    heads, tails = zip(*(_pair(tokenizer, *pair, keep=written) for pair in pairs), strict=True)
    if not all(tails):
        raise DataError(f"document {doc.doc_id!r} of {task.name} has an empty answer (0 tokens); an answer needs text, "
                        "correct the row or the YAML file")
    # the last token of an answer is asked for, but is no input
    rooms = [cfg.max_length - (cfg.max_new_tokens if written else len(tail) - 1) for tail in tails]
    if min(rooms) < 1:
        raise UserError(f"document {doc.doc_id!r} of {task.name} leaves no room for its prompt in {cfg.max_length} "
                        "tokens; raise --lm_eval_max_length or use a model with a longer context")
    if written:  # lm-evaluation-harness asks for no gold text: it gets what room the prompt leaves
        tails = [tails[0][:max(1, cfg.max_length - min(len(heads[0]), rooms[0]) + 1)]]
    first, *others = [head[-room:] for head, room in zip(heads, rooms, strict=True)]
    prompt = pairs[0][0]
    return Request(doc=replace(doc, question=prompt), context=first, continuations=tails if choice else (),
                   gold=tails[doc.gold_index if choice else 0], truncated=any(map(gt, map(len, heads), rooms)),
                   prompt_sha=hashlib.sha256(prompt.encode()).hexdigest()[:16],
                   others=() if set(others) <= {first} else tuple(others))


def _pair(tokenizer, context: str, end: str, keep: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of a prompt and of what may follow; ``keep``: the model writes on, so white space stays where it is."""
    head = context if keep else context.rstrip()
    alone = tuple(encode(tokenizer, [context[len(head):] + end], special=False)[0])
    if not head:
        first = prefix_token(tokenizer)
        return (first,), alone[1:] if alone[:1] == (first,) else alone
    begin = tokenizer.decode([prefix_token(tokenizer)])
    special = not (begin and head.startswith(begin))  # a text that has the token already gets no second one
    ids, whole = encode(tokenizer, [head, context + end], special=special)
    return tuple(ids), tuple(whole[len(ids):]) or alone


def prefix_token(tokenizer) -> int:
    """The token before an empty prompt."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def rolling(ids: list[int], first: int, length: int) -> list[tuple[list[int], list[int]]]:
    """Windows as (given, asked): every token is asked once."""
    given, out = [first, *ids], []
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        out.append((given[max(0, end - length):start + 1], ids[start:end]))
    return out


def _windows(loaded, doc: Doc, tokenizer, length: int) -> list[Request]:
    (ids,) = encode(tokenizer, [doc.question])
    built = []
    for number, (given, asked) in enumerate(rolling(ids, prefix_token(tokenizer), length)):
        shown = Doc(f"{doc.doc_id}/{number}", tokenizer.decode(asked[:SHOWN]))
        loaded.shares[shown.doc_id] = doc.doc_id, len(asked) / len(ids)
        built.append(Request(doc=shown, context=tuple(given), continuations=(), gold=tuple(asked), truncated=False,
                            prompt_sha=hashlib.sha256(repr((given, asked)).encode()).hexdigest()[:16]))
    return built
