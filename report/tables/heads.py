"""Whether the same heads come out best in every seed, that is, whatever documents were drawn."""

from collections.abc import Sequence
from itertools import combinations

from report.schema import Result

TOP = 0.1  # share of the heads that counts as the best


def stable_heads(cells: Sequence[Result]) -> list[str]:
    """One line a method whose scores of heads are there of two seeds or more: how much the best tenths overlap."""
    best: dict[str, dict[int, frozenset]] = {}
    for cell in cells:
        heads = cell.score_notes.get("heads")
        if heads:
            best.setdefault(cell.name, {})[cell.seed] = best_heads(heads)
    lines = []
    for name, by_seed in best.items():
        pairs = list(combinations(by_seed.values(), 2))
        if pairs:
            overlap = sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)
            lines.append(f"{name}: the best tenth of the heads in seeds {' '.join(map(str, sorted(by_seed)))}: mean "
                         f"Jaccard overlap of two seeds {overlap:.2f}")
    return lines


def best_heads(heads: Sequence[Sequence[float]]) -> frozenset[tuple[int, int]]:
    """(block, head) of the best tenth, at least one; of equal ones the earlier."""
    ranked = sorted(((-value, block, head) for block, row in enumerate(heads) for head, value in enumerate(row)))
    return frozenset((block, head) for _, block, head in ranked[:max(1, round(TOP * len(ranked)))])
