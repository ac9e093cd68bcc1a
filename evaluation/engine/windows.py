"""Joined text as windows of N tokens: each is a document, and the perplexity is exp of their mean nats a token.

The windows follow one another and do not overlap; what is left of the text after the last whole one is not asked
(GPTQ's loaders and TaCQ's evaluation do the same).  A window's first token is given, the others are asked.
"""

import hashlib

from core.errors import DataError
from evaluation.data.documents import Doc
from evaluation.engine.prompts import Request, encode
from evaluation.tasks.base import Task

SHOWN = 200  # characters of a window's text that people are shown


def window_requests(task: Task, docs, tokenizer, window: int, most: int) -> list[Request]:
    """The first ``most`` windows of ``window`` tokens of the joined documents."""
    ids = encode(tokenizer, [task.join.join(doc.question for doc in docs)])[0]
    count = min(len(ids) // window, most)
    if not count:
        raise DataError(f"the text of {task.name} has {len(ids)} tokens, which is less than one window of {window}; "
                        "lower --ppl_window or give more text")
    return [_request(ids[start:start + window], start, tokenizer) for start in range(0, count * window, window)]


def _request(ids: list[int], start: int, tokenizer) -> Request:
    shown = tokenizer.decode(ids[:SHOWN])[:SHOWN]
    return Request(doc=Doc(f"tokens-{start}-{start + len(ids)}", shown), context=tuple(ids[:1]), continuations=(),
                   gold=tuple(ids[1:]), truncated=False,
                   prompt_sha=hashlib.sha256(repr(ids).encode()).hexdigest()[:16])
