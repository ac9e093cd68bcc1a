"""One pass over the prompts serves every block scorer, one walk for Hessians every scorer that reads them."""

import pytest

import harness.stages.outputs
import harness.stages.pivots
from harness.stages.scores import scores
from tests.harness.bench import cases_of


def scored(tiny_folder, tmp_path, rows, seeds=(0,)) -> list:
    """Scores of these rows, each by a process's first look at its case."""
    cases = cases_of(models=(str(tiny_folder),), methods=rows, datasets=("mmlu_pro",), calib_size=12, eval_size=6,
                     calib_tokens=300, avg_bits=(4.75,), seeds=seeds, device="cpu", cache_dir=str(tmp_path / "c"),
                     results_dir=str(tmp_path / "r"))
    chosen = [case for case in cases if case.cell.method.name in rows]
    assert len(chosen) >= len(rows)
    return [scores(case) for case in chosen]


@pytest.fixture()
def calls(monkeypatch):
    """Prompts of every pass, and linears of every walk."""
    seen = []
    for module, name in ((harness.stages.outputs, "block_outputs"), (harness.stages.pivots, "pivots_of")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda ctx, *rest, plain=plain, name=name: seen.append(name)
                            or plain(ctx, *rest))
    return seen


@pytest.mark.parametrize(("seeds", "passes"), [((0,), 1), ((0, 1), 2)])
def test_block_scorers_share_one_clean_pass(tiny_folder, tmp_path, calls, seeds, passes):
    """TAQ samples tokens by the seed, so each seed has a pass; TAQoS reads the same prompts here as the others."""
    scored(tiny_folder, tmp_path, ("TAQ", "TAQ-raw", "TAQO", "TAQoS"), seeds)
    assert calls == ["block_outputs"] * passes


def test_spqr_and_slim_share_one_walk(tiny_folder, tmp_path, calls):
    scored(tiny_folder, tmp_path, ("SPQR", "SliM-LLM"))
    assert calls == ["pivots_of"]
