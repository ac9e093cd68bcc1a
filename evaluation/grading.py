"""From written text to right or wrong: the answer that a text holds, and how well it agrees with the gold texts.

exact match = max over aliases of [normalise(answer) = normalise(alias)]; F1 = max over aliases of the harmonic mean of token
precision and recall.  ``normalise`` is TriviaQA's (lower case, punctuation to spaces, no articles, single spaces) and is used
for open questions only: it turns the letter "A" into "", and a harness that compares letters with it pays every model that
writes nothing.  None means "could not be parsed" and is counted as such; it is never right.  Nothing is cut at punctuation
("St. Louis" stays whole).
"""

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans({ch: " " for ch in string.punctuation + "‘’´`"})
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def extract(text: str) -> str | None:
    """Return the first line without surrounding white space, or None when nothing is there."""
    return text.strip().split("\n", 1)[0].strip() or None


def normalise(text: str) -> str:
    """TriviaQA's official answer normalisation."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str | None, aliases) -> float:
    """1 if the answer equals an alias, else 0; an empty answer is never right, whatever the gold normalises to."""
    if answer is None or not answer.strip():
        return 0.0
    norm = normalise(answer)
    if norm:
        return float(any(norm == normalise(alias) for alias in aliases))
    return float(any(answer.strip().lower() == alias.strip().lower() for alias in aliases))  # e.g. the vitamin "A"


def token_f1(answer: str | None, aliases) -> float:
    """The largest token F1 over the aliases."""
    if answer is None or not answer.strip():
        return 0.0
    mine = Counter(normalise(answer).split())
    if not mine:
        return exact_match(answer, aliases)
    return max((_f1(mine, Counter(normalise(alias).split())) for alias in aliases), default=0.0)


def _f1(a: Counter, b: Counter) -> float:
    same = (a & b).total()
    return 2 * same / (a.total() + b.total()) if same else 0.0
