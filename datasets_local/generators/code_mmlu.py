"""The CodeMMLU-like set: Python questions with four choices, each answer proven by running it."""

from __future__ import annotations

from .code_blocks import SUBSETS, read_blocks
from .code_checks import verify
from .common import LETTERS, GoldPlacer, seeded_order


def verify_code() -> int:
    """Run every candidate of every block; returns how many questions were proven, raises DataError at the first
    failure.
    """
    blocks = [block for subset in SUBSETS for block in read_blocks(subset)]
    for block in blocks:
        verify(block)
    return len(blocks)


def build_code_mmlu() -> list[dict]:
    """All rows, in a seeded order so that a prefix of the file holds every subset."""
    named = [(f"emb_{subset}_{number:03d}", block) for subset in SUBSETS
             for number, block in enumerate(read_blocks(subset), 1)]
    by_id = dict(named)
    placer = GoldPlacer("code_mmlu")
    rows = []
    for name in seeded_order("code_mmlu", [name for name, _ in named]):
        block = by_id[name]
        choices, index = placer.place(block.question, block.gold, block.distractors)
        rows.append({
            "task_id": name, "question": block.question, "choices": choices, "answer": LETTERS[index],
            "subset": block.subset,
        })
    return rows
