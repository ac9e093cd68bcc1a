"""From written text to right or wrong: the answer that a text holds, and how well it agrees with the gold texts.

exact match = max over aliases of [normalise(answer) = normalise(alias)]; F1 = max over aliases of the harmonic mean of
token precision and recall.  ``normalise`` is TriviaQA's (lower case, punctuation to spaces, no articles, single spaces)
and is used for open questions only: it turns the letter "A" into "", and a harness that compares letters with it pays
every model that writes nothing.  None means "could not be parsed" and is counted as such; it is never right.  Nothing
is cut at punctuation ("St. Louis" stays whole).
"""

import math
import re
import string
from collections import Counter
from dataclasses import dataclass, field
from numbers import Real

from core.errors import UserError

_PUNCTUATION = str.maketrans({ch: " " for ch in string.punctuation + "‘’´`"})
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
COMMON = ("accuracy", "gold_loglik", "parse_fail", "truncated", "n_prompt", "n_new")  # every task's, computed elsewhere


@dataclass(frozen=True)
class Grade:
    """What a task says of one answer; every value is checked, because a task may be a user's own."""

    answer: str | None  # as read out of the text; None = could not be parsed
    correct: float | None  # 1 or 0; None = the task has no right and wrong
    scores: dict[str, float] = field(default_factory=dict)  # further metrics by name, finite

    def __post_init__(self):
        if self.answer is not None and not isinstance(self.answer, str):
            raise UserError(f"a grade has the answer {self.answer!r}; give a text, or None if it could not be parsed")
        if self.correct is not None and self.correct not in (0, 1):
            raise UserError(f"a grade has correct {self.correct!r}; give 1, 0, or None if there is no right and wrong")
        for name, value in self.scores.items():
            if not isinstance(name, str) or name in COMMON:
                raise UserError(f"a grade has a score named {name!r}; give it a name besides {', '.join(COMMON)}")
            if not isinstance(value, Real) or not math.isfinite(value):
                raise UserError(f"a grade has the score {name} = {value!r}; give a finite number")

    def fields(self) -> dict:
        """The grade as fields of a Sample; "f1" has one of its own there, so that stored lines keep their bytes."""
        scores = {name: float(value) for name, value in self.scores.items()}
        return {"answer": self.answer, "correct": None if self.correct is None else float(self.correct),
                "f1": scores.pop("f1", None), "scores": scores}


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


def choose(logprobs, lengths, scoring: str) -> int:
    """Return the index of the option with the largest log-probability; ties: the first.

    Cloze divides each by its length, so that the tokenizer does not decide; a length of 0 counts as 1.
    """
    values = [p / max(n, 1) for p, n in zip(logprobs, lengths, strict=True)] if scoring == "cloze" else list(logprobs)
    return max(range(len(values)), key=lambda i: (values[i], -i))
