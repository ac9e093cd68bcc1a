"""The TriviaQA-like set: short questions with a short answer and its aliases, from `facts/trivia.tsv`."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict

from .common import read_table, seeded_order

_PUNCTUATION = set(string.punctuation + "‘’´`")


def normalise(text: str) -> str:
    """The normaliser of the official TriviaQA evaluation script, kept to the letter so that scores can be compared."""
    text = text.replace("_", " ").lower()
    text = "".join(" " if char in _PUNCTUATION else char for char in text)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def answer_of(cell: str) -> dict:
    """The hub's `answer` field from `value|alias|alias`; the value is its own first alias."""
    aliases = [alias.strip() for alias in cell.split("|")]
    normalised = list(dict.fromkeys(normalise(alias) for alias in aliases))
    return {"value": aliases[0], "aliases": aliases, "normalized_aliases": normalised,
            "normalized_value": normalised[0]}


def build_trivia() -> list[dict]:
    """All rows, in a seeded order: few-shot prompts take neighbours, which should not all be of one family."""
    wordings: dict[str, list[str]] = defaultdict(list)
    for family, wording in read_table("trivia_wordings.tsv", 2):
        wordings[family].append(wording)
    count: Counter[str] = Counter()
    rows = []
    for family, subject, answer in read_table("trivia.tsv", 3):
        choices = wordings.get(family, ["{}"])
        question = choices[count[family] % len(choices)].format(subject)
        count[family] += 1
        rows.append({"question": question, "question_id": f"emb_{family}_{count[family]:03d}",
                     "answer": answer_of(answer)})
    order = seeded_order("trivia_qa", [row["question_id"] for row in rows])
    by_id = {row["question_id"]: row for row in rows}
    return [by_id[name] for name in order]
