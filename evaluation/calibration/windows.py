"""Calibration out of general text: windows of exactly ``window`` tokens, drawn by a seed.

    c4          a random document of at least ``window`` tokens, one random window of it
    wikitext2   documents joined by a blank line, tokenised once, random windows; file:PATH likewise
"""

from collections.abc import Iterator

import numpy as np

from core.calibration import OWN
from core.errors import UserError, did_you_mean
from evaluation.calibration.documents import Tokens, check_budget
from evaluation.engine.prompts import encode

JOINT = "\n\n"

STYLES = ("c4", "wikitext2")
TOKENISED_AT_ONCE = 32  # documents; how many has no influence on what is drawn


def sample_windows(texts: list[str], tokenizer, *, window: int, budget_tokens: int, seed: int,
                   style: str) -> list[Tokens]:
    """Return ⌊budget / window⌋ random windows of exactly ``window`` tokens; a budget below one window shortens it.

    ``style`` "c4": each from another document, tokenised only as far as needed; others: from the joined text.
    """
    check_budget(budget_tokens)
    length = min(window, budget_tokens)
    if length < 2:
        raise UserError(f"a calibration window of {length} token has no loss; raise --calib_window ({window}) or "
                        f"the tokens for {style} ({budget_tokens} of --calib_tokens) to at least 2")
    if style not in STYLES and not style.startswith(OWN):
        raise UserError(f"unknown style of windows {style!r}{did_you_mean(style, STYLES)}; use c4 or wikitext2")
    count, rng = budget_tokens // length, np.random.default_rng(seed)
    if style == "c4":
        return _windows_of_documents(texts, tokenizer, length=length, count=count, rng=rng)
    return _windows_of_joined(texts, tokenizer, length=length, count=count, rng=rng,
                              name=style if style in STYLES else "text")


def _windows_of_documents(texts, tokenizer, *, length: int, count: int, rng: np.random.Generator) -> list[Tokens]:
    order = rng.permutation(len(texts))
    long, windows, longest = [], [], 0
    for index, ids in _tokenised(texts, order, tokenizer):
        longest = max(longest, len(ids))
        if len(ids) >= length:
            long.append((f"c4:{index}", ids))
            windows.append(_window(*long[-1], length, rng))
        if len(windows) == count:
            return windows
    if not long:
        raise _too_short("c4", f"the longest of {len(texts)} documents", longest, length)
    while len(windows) < count:  # every long document was taken once: again, in the same order
        windows.append(_window(*long[len(windows) % len(long)], length, rng))
    return windows


def _tokenised(texts, order, tokenizer) -> Iterator[tuple[int, list[int]]]:
    for start in range(0, len(order), TOKENISED_AT_ONCE):
        some = [int(i) for i in order[start:start + TOKENISED_AT_ONCE]]
        yield from zip(some, encode(tokenizer, [texts[i] for i in some]), strict=True)


def _windows_of_joined(texts, tokenizer, *, length: int, count: int, rng: np.random.Generator,
                       name: str) -> list[Tokens]:
    ids = encode(tokenizer, [JOINT.join(texts)])[0] if texts else []
    if len(ids) < length:
        raise _too_short(name, "the joined text", len(ids), length)
    ids = np.asarray(ids, dtype=np.int64)
    return [_window(name, ids, length, rng) for _ in range(count)]


def _window(name: str, ids, length: int, rng: np.random.Generator) -> Tokens:
    start = int(rng.integers(len(ids) - length + 1))
    tokens = np.array(ids[start:start + length], dtype=np.int64)  # a copy: a view would hold the whole text
    return Tokens(f"{name}@{start}", tokens, np.ones(length, dtype=bool), False)


def _too_short(name: str, what: str, longest: int, length: int) -> UserError:
    mend = f"lower --calib_window to at most {longest}"
    if longest < 2:
        mend = "check the data source, no --calib_window fits"
    return UserError(f"{what} of {name} has {longest} tokens, which is less than a calibration window of {length}; "
                     f"{mend}")
