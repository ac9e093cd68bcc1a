"""One pass over the prompts serves every block scorer."""

import pytest

import harness.stages.outputs
from harness.stages.scores import scores
from tests.harness.bench import cases_of

ROWS = ("TAQ", "TAQ-raw", "TAQO", "TAQoS")


@pytest.mark.parametrize(("seeds", "passes"), [((0,), 1), ((0, 1), 2)])
def test_block_scorers_share_one_clean_pass(tiny_folder, tmp_path, monkeypatch, seeds, passes):
    """TAQ samples tokens by the seed, so each seed has a pass; TAQoS reads the same prompts here as the others."""
    calls, plain = [], harness.stages.outputs.block_outputs
    monkeypatch.setattr(harness.stages.outputs, "block_outputs",
                        lambda ctx, chosen: calls.append(len(chosen)) or plain(ctx, chosen))
    cases = cases_of(models=(str(tiny_folder),), methods=ROWS, datasets=("mmlu_pro",), calib_size=12, eval_size=6,
                     avg_bits=(4.75,), seeds=seeds, device="cpu", cache_dir=str(tmp_path / "c"),
                     results_dir=str(tmp_path / "r"))
    rows = [case for case in cases if case.cell.method.name in ROWS]
    assert len(rows) >= len(ROWS)
    assert all(scores(case).notes for case in rows) and calls == [12] * passes
