"""The MMLU-Pro-like set: 4 to 10 options a question, from a glossary and a table of history questions.

A glossary row becomes either "what does this term mean" or "which term means this". The distractors are the same column
of other rows of its category, so they are plausible, and wrong by the table's own rule that a definition fits one term
only.
"""

from __future__ import annotations

from collections import defaultdict

from .common import LETTERS, DataError, GoldPlacer, read_table, seeded_order

SIZES = (4, 5, 6, 8, 10)  # how many options; chance is the mean of 1/size, about 0.17
_FIELDS = {"math": "mathematics", "health": "medicine"}
_WORDINGS = (  # the first two ask for the definition, the last two for the term
    "In {field}, what is meant by {term}?",
    'What does the term "{bare}" mean in {field}?',
    "In {field}, what do we call {definition}?",
    "What is the term in {field} for {definition}?",
)
_WORDINGS_OTHER = (
    "What is meant by {term}?",
    'What does the term "{bare}" mean?',
    "What do we call {definition}?",
    "What is the term for {definition}?",
)


def _bare(term: str) -> str:
    """The term without its article, as it stands within quotation marks."""
    first, _, rest = term.partition(" ")
    return rest if first in {"a", "an", "the"} else term


def _capital(text: str) -> str:
    """The text with a capital at its start, as an answer stands; `str.capitalize` would lower the rest (DNA, God)."""
    return text[0].upper() + text[1:]


def _distractors(gold: str, pool: list[str], count: int) -> list[str]:
    """Seeded choice among the pool's options nearest in length to the right one, so that length gives nothing away."""
    others = sorted((option for option in pool if option != gold),
                    key=lambda option: (abs(len(option) - len(gold)), option))
    return seeded_order(f"distractors/{gold}", others[: max(count, 14)])[:count]


def _kept_apart() -> set[tuple[str, str, str]]:
    """(category, term, term) in both orders for the pairs that may not meet in one question."""
    pairs = set()
    for category, one, other in read_table("glossary_apart.tsv", 3):
        pairs |= {(category, one, other), (category, other, one)}
    return pairs


def _glossary_items() -> list[tuple[str, str, str, list[str]]]:
    """(category, question, right option, pool of options) for each glossary row, the four wordings in turn."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for category, term, definition in read_table("glossary.tsv", 3):
        groups[category].append((term, definition))
    apart, items = _kept_apart(), []
    known = {(category, term) for category, entries in groups.items() for term, _ in entries}
    if unknown := [pair for pair in sorted(apart) if pair[:2] not in known]:
        raise DataError(f"glossary_apart.tsv names terms that glossary.tsv lacks: {unknown}")
    for category, entries in groups.items():
        wordings = _WORDINGS_OTHER if category == "other" else _WORDINGS
        for number, (term, definition) in enumerate(entries):
            kind = (0, 2, 1, 3)[number % 4]
            field = _FIELDS.get(category, category)
            question = wordings[kind].format(field=field, term=term, bare=_bare(term), definition=definition)
            column = 1 if kind < 2 else 0
            pool = [entry[column] for entry in entries if (category, term, entry[0]) not in apart]
            items.append((category, question, (term, definition)[column], pool))
    return items


def _history_items() -> list[tuple[str, str, str, list[str]]]:
    """The same for the history table, whose groups supply the distractors."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for group, question, answer in read_table("history.tsv", 3):
        groups[group].append((question, answer))
    return [
        ("history", question, answer, [other for _, other in entries])
        for entries in groups.values()
        for question, answer in entries
    ]


def build_mmlu_pro() -> list[dict]:
    """All rows, in a seeded order; the sizes go in turn through that order, so each category gets all of them."""
    items = list(enumerate(_glossary_items() + _history_items(), 1))
    placer = GoldPlacer("mmlu_pro")
    rows = []
    for place, (number, (category, question, gold, pool)) in enumerate(seeded_order("mmlu_pro", items)):
        size = SIZES[place % len(SIZES)]
        distractors = [_capital(option) for option in _distractors(gold, pool, size - 1)]
        options, index = placer.place(question, _capital(gold), distractors)
        rows.append({
            "question_id": number, "question": question, "options": options, "answer": LETTERS[index],
            "answer_index": index, "cot_content": "", "category": category, "src": "embedded",
        })
    return rows
