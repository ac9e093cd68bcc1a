"""Of scores of single weights the best are stored: the same plans, and all of them where somebody asks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from core.digest import write_json
from core.errors import UserError
from core.types import Budget, Scores
from harness.api import score
from harness.forecast.disk import SMALL, disk_bytes
from harness.stages import best_scores
from harness.stages.best_scores import BestScores, sample_of, write_best
from harness.stages.cell import being_made, compute_cell
from harness.stages.plan import plan
from harness.stages.scores import scores, scores_key, scores_needed, whole_scores
from quantization.allocators.common import AllocContext, topk_keep
from quantization.allocators.ranking import BelowBest, first_k
from tests.harness.bench import case_of

SHAPES = {"b": (5, 16), "a": (3, 7), "c": (1, 40)}


@given(seed=st.integers(0, 2**31), ties=st.integers(1, 50), share=st.floats(0, 1))
def test_the_best_scores_rank_as_all_do(tmp_path_factory, seed, ties, share):
    folder, rng = tmp_path_factory.mktemp("best"), np.random.default_rng(seed)
    values = {fqn: (rng.integers(-ties, ties, shape) / 8).astype(np.float32) for fqn, shape in SHAPES.items()}
    write_best(folder, values)
    best = BestScores(folder / best_scores.FILE, SHAPES)
    names, total = sorted(SHAPES), sum(map(math.prod, SHAPES.values()))
    assert list(best) == names and len(best) == 3
    whole = [torch.from_numpy(values[fqn]).flatten() for fqn in names]
    stored = sum(int((best[fqn] > -torch.inf).sum()) for fqn in names)
    k = round(share * stored)
    assert stored == math.ceil(total / best_scores.SHARE), "equal scores take no more room"
    assert first_k([best[fqn].flatten() for fqn in names], k).tolist() == first_k(whole, k).tolist()
    if stored < total:
        with pytest.raises(BelowBest, match=f"{stored + 1} scores are asked for, of which only {stored} are stored"):
            first_k([best[fqn].flatten() for fqn in names], stored + 1)
    for fqn in names:
        (at, sample), (alike, plain) = sample_of(best, fqn), sample_of({fqn: torch.from_numpy(values[fqn])}, fqn)
        assert at.tolist() == alike.tolist() and sample.tolist() == plain.tolist()


@pytest.fixture
def magnitude(tiny_folder, tmp_path):
    """A row of single weights at a budget, as a process of its own sees it."""
    def case(bits: float, cache: str = "cache", name: str = "magnitude"):
        return case_of(name, models=(str(tiny_folder),), methods=(name,), avg_bits=(bits,), device="cpu", threads=1,
                       eval_size=8, calib_size=8, cache_dir=str(tmp_path / cache), results_dir=str(tmp_path / "res"))
    return case


@pytest.mark.parametrize("bits, whole", [(4.75, 0), (11.0, 0), (13.0, 1)])
def test_all_scores_are_made_only_where_a_plan_keeps_more_than_is_stored(magnitude, bits, whole):
    """At 11 bits 14 % of the weights could be kept over 8 were there no index; with it, 8 % can."""
    case = magnitude(bits)
    planned = plan(case)
    assert 0 < planned.plan.notes["kept_share"] and planned.plan.avg_bits <= bits
    assert len(list(case.store.root.glob("*/scores.safetensors"))) == whole


def test_a_plan_that_needs_more_has_all_scores_made(magnitude, monkeypatch):
    usual = magnitude(4.75)
    planned = plan(usual)
    assert isinstance(scores(usual).values, BestScores)
    assert not list(usual.store.root.glob("*/scores.safetensors")), "the best are enough here"
    monkeypatch.setattr(best_scores, "SHARE", 1000)
    narrow = magnitude(4.75, "narrow")
    assert plan(narrow).id == planned.id and plan(narrow).probe == planned.probe
    assert len(list(narrow.store.root.glob("*/scores.safetensors"))) == 1, "every score, stored once"


def test_an_allocator_that_does_not_rank_reads_all_scores(magnitude, monkeypatch):
    """One that takes the scores as they are would take those that are not stored for −∞."""
    import harness.stages.plan
    from core.registry import ALLOCATORS

    seen: list[Scores] = []
    real = harness.stages.plan.alloc_context
    monkeypatch.setattr(harness.stages.plan, "alloc_context",
                        lambda case, scored, options: seen.append(scored) or real(case, scored, options))
    case = magnitude(4.75)
    monkeypatch.setitem(ALLOCATORS._items, "topk_keep", replace(ALLOCATORS.get("topk_keep"), ranks=False))
    runs, real_run = [], harness.stages.scores.run_scorer
    monkeypatch.setattr(harness.stages.scores, "run_scorer", lambda *args: runs.append(1) or real_run(*args))
    assert disk_bytes([case]) == 4 * case.model.weights + SMALL
    with case.store.lock(scores_needed(case), "scores"):
        assert being_made(case)
    plan(case)
    assert all(torch.isfinite(value).all() for value in seen[0].values.values())
    best = scores(case)
    assert isinstance(best.values, BestScores) and len(runs) == 1, "the best are taken from all"
    assert {"element_scores", "scores"} <= compute_cell(case)[0].seconds.keys()


@pytest.mark.parametrize("granularity, shape", [("group", (4, 2)), ("linear", ())])
def test_what_is_kept_is_weights_columns_or_rows(granularity, shape):
    scored = Scores(granularity, {"a": torch.rand(shape)}, "loss")
    with pytest.raises(UserError, match=f"single weights, columns or rows.*this row's scores: {granularity}"):
        topk_keep(AllocContext({"a": (4, 64)}, {"a": 0}, Budget(4.75, group_size=32), scored))


def test_from_python_every_score_is_there(tiny_folder, tmp_path):
    where = dict(cache_dir=str(tmp_path / "cache"), results_dir=str(tmp_path / "res"), device="cpu", threads=1)
    given = score(str(tiny_folder), "magnitude", "mmlu_pro", **where)
    assert given.granularity == "element" and all(torch.isfinite(value).all() for value in given.values.values())


def test_an_entry_that_holds_every_score_is_read_as_it_is(magnitude):
    """As versions before stored them: no run of the scorer, the same plan."""
    new, old = magnitude(4.75), magnitude(4.75, "old")
    whole = whole_scores(new)
    values = {fqn: value.numpy() for fqn, value in whole.values.items()}
    head = {"granularity": "element", "unit": whole.unit, "levels": None, "notes": whole.notes}

    def write(folder) -> None:
        save_file(values, folder / "scores.safetensors")
        write_json(folder / "scores.json", head)

    key, identity = scores_key(old)
    old.store.put(key, identity, {}, write)
    assert not isinstance(scores(old).values, BestScores) and whole_scores(old).values.keys() == values.keys()
    assert plan(old).id == plan(new).id and plan(old).probe == plan(new).probe
