"""Answers out of free text.  None means "could not be parsed" and is counted as such; it is never right.

Nothing is cut at punctuation ("St. Louis" stays whole), and letters are found, not compared as texts
("A. option text" is the letter A).
"""

import re

_STATED = re.compile(r"answer\s*(?:is|:)?\s*[:=]?\s*\**\(?([A-Z])\b(?!['’])", re.IGNORECASE)
_LEADING = re.compile(r"\s*\**[(\[]?([A-Z])(?:[)\].:*]|\s*$|\s*\n)")
_MARKED = re.compile(r"[(\[]([A-Z])[)\]]")


def extract(text: str) -> str | None:
    """Return the first line without surrounding white space, or None when nothing is there."""
    return text.strip().split("\n", 1)[0].strip() or None


def extract_letter(text: str, n_options: int) -> str | None:
    """Return the letter that a free text gives as its answer, or None.

    In this order: a letter at the very start ("B", "B.", "(B) because"), after the word answer ("The answer
    is (B)"; the last such mention counts), or a single letter in brackets.  Letters beyond the options do not count.
    """
    allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:n_options]
    lead = _LEADING.match(text)
    if lead and lead[1] in allowed:
        return lead[1]
    stated = [m for m in _STATED.findall(text) if m in allowed]  # lower case "a" after "answer is" is an article
    if stated:
        return stated[-1]
    marked = {m for m in _MARKED.findall(text) if m in allowed}
    return marked.pop() if len(marked) == 1 else None
