"""How much the best heads of two seeds overlap, by hand."""

from report.records import load_results
from report.tables.heads import best_heads, stable_heads
from report.tables.tables import group
from tests.report.handmade import put


def heads(*best: tuple[int, int]) -> list[list[float]]:
    """A map of 5 blocks of 8 heads: these four are the best, the first the very best."""
    values = [[0.0] * 8 for _ in range(5)]
    for rank, (block, head) in enumerate(best):
        values[block][head] = 9.0 - rank
    return values


def test_overlap_of_seeds(tmp_path):
    put(tmp_path, "fp16", 16.0, 0.0, budget=None)
    first, second = heads((0, 1), (1, 2), (2, 3), (3, 4)), heads((0, 1), (1, 2), (2, 3), (4, 7))
    assert best_heads(first) == {(0, 1), (1, 2), (2, 3), (3, 4)}
    for seed, of in ((0, first), (1, second)):
        put(tmp_path, "heads-ablation", 4.25, -0.1, seed=seed, score_notes={"heads": of})
    put(tmp_path, "circuit", 4.25, -0.1, seed=0, score_notes={"heads": first})
    results = load_results(tmp_path)
    want = "heads-ablation: the best tenth of the heads in seeds 0 1: mean Jaccard overlap of two seeds 0.60"
    assert stable_heads(results) == [want]
    assert f"mmlu_pro: {want}" in group(results, results)[0].said
