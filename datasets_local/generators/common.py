"""What the three generators share: fact tables, seeded choice and the placing of the right option.

All choice goes through SHA-256 instead of `random`, because the committed files must come out byte for byte the same on
every Python version and platform.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

FACTS = Path(__file__).resolve().parent.parent / "facts"
LETTERS = "ABCDEFGHIJ"


class DataError(ValueError):
    """A fact table that cannot be expanded, or an answer that its own check refutes."""


def read_table(name: str, columns: int) -> list[list[str]]:
    """Rows of `facts/<name>`: tab-separated cells, with empty lines and lines that begin with `#` left out."""
    rows = []
    for number, line in enumerate((FACTS / name).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != columns or not all(cells):
            raise DataError(f"{name}:{number}: expected {columns} non-empty cells, found {len(cells)}: {line!r}")
        rows.append(cells)
    return rows


def seeded_rank(seed: str, item: object) -> str:
    """A sort key that looks random but depends on nothing except its two arguments."""
    return hashlib.sha256(f"{seed}\x1f{item}".encode()).hexdigest()


def seeded_order(seed: str, items: list) -> list:
    """The items in a seeded order."""
    return sorted(items, key=lambda item: seeded_rank(seed, item))


class GoldPlacer:
    """Gives every question the place of its right option, each place equally often among rows with as many options.

    The balance is kept for each number of options on its own: otherwise the letters J or H, which only the long
    questions have, would give the answer away in those.
    """

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._seen: Counter[int] = Counter()
        self._blocks: dict[tuple[int, int], list[int]] = defaultdict(list)

    def next_place(self, options: int) -> int:
        """The place (from 0) of the right option in the next question with this many options."""
        block, index = divmod(self._seen[options], options)
        self._seen[options] += 1
        key = (options, block)
        if key not in self._blocks:
            self._blocks[key] = seeded_order(f"{self._seed}/{options}/{block}", list(range(options)))
        return self._blocks[key][index]

    def place(self, question: str, gold: str, distractors: list[str]) -> tuple[list[str], int]:
        """Distractors in a seeded order with the right option put into its place; returns the options and that place.
        """
        options = seeded_order(f"{self._seed}/{question}", list(distractors))
        index = self.next_place(len(distractors) + 1)
        options.insert(index, gold)
        if len(set(options)) != len(options):  # exact: in code `True` and `true` are two things
            raise DataError(f"an option occurs twice in {question!r}: {options}")
        return options, index
