"""One pass over the prompts serves every block scorer, one walk for Hessians every scorer that reads them."""

import pytest

import harness.stages.outputs
import harness.stages.pivots
from core.registry import scorer
from harness.stages.cell import upstream
from harness.stages.scores import scores
from tests.harness.bench import case_of, cases_of


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


@pytest.mark.parametrize(("seeds", "passes"), [((42,), 1), ((0, 1), 2)])
def test_block_scorers_share_one_clean_pass(tiny_folder, tmp_path, calls, seeds, passes):
    """TAQ samples tokens by the seed, so each seed has a pass; TAQoS reads the same prompts here as the others."""
    scored(tiny_folder, tmp_path, ("TAQ", "TAQ-raw", "TAQO", "TAQoS"), seeds)
    assert calls == ["block_outputs"] * passes


def test_spqr_and_slim_share_one_walk(tiny_folder, tmp_path, calls):
    scored(tiny_folder, tmp_path, ("SPQR", "SliM-LLM"))
    assert calls == ["pivots_of"]


def test_a_shared_pass_is_known_by_all_that_it_depends_on(tiny_folder, tmp_path):
    """Both keys follow the documents; the outputs' also what the pass reads; and a cell says what it is made of."""
    def keys(name: str, **changes):
        case = case_of(name, models=(str(tiny_folder),), methods=(name,), eval_size=6, cache_dir=str(tmp_path / "c"),
                       results_dir=str(tmp_path), datasets=("mmlu_pro",),
                       **{"calib_tokens": 300, "calib_size": 12, "avg_bits": (4.75,), "threads": 3} | changes)
        return upstream(case)

    base = keys("TAQ")["outputs"]
    assert base == keys("TAQoS")["outputs"] == keys("TAQO", avg_bits=(5.5,))["outputs"]
    others = [{"seeds": (1,)}, {"published": True}, {"batch_tokens": 500}, {"score_docs": 3}, {"calib_size": 6},
              {"threads": 1}]
    assert len({base, *(keys("TAQ", **change)["outputs"] for change in others)}) == 1 + len(others)
    pivots = keys("SPQR")["pivots"]
    assert pivots == keys("SliM-LLM")["pivots"] == keys("SPQR", avg_bits=(5.5,))["pivots"]
    others = [{"seeds": (1,)}, {"calib_tokens": 200}]
    assert len({pivots, *(keys("SPQR", **change)["pivots"] for change in others)}) == 1 + len(others)
    assert keys("TAQ", published=True)["scores"] != keys("TAQ")["scores"]


def test_a_scorer_that_reads_outputs_of_other_prompts_is_told_so(tiny_folder, tmp_path):
    case = case_of("TAQ", models=(str(tiny_folder),), methods=("TAQ",), calib_size=12, cache_dir=str(tmp_path / "c"),
                   results_dir=str(tmp_path))
    with pytest.raises(ValueError, match="the first so many prompts"):
        harness.stages.outputs.outputs(case, None, [3, 4])
    with pytest.raises(ValueError, match="name 'calib' beside it"):
        scorer("reads outputs alone", granularity="layer", needs=("outputs",))
