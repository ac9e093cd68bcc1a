"""Rows that are tuned end to end, through the harness: kills, results, what is stored."""

import pytest
import torch

import quantization.solvers.gptq as solver
from harness.stages.cell import compute_cell
from harness.stages.plan import plan
from harness.stages.weights import hold_weights, true_plan
from tests.harness.bench import case_of

ROW = "TaCQ-budget-native[group=32,kept=8,scales=log,tune=3]"
GRID = dict(run_type="demo", datasets=("mmlu_pro",), quantizer="gptq", calib_tokens=900, calib_size=60, eval_size=4,
            avg_bits=(2.75,), threads=1, device="cpu")


@pytest.fixture
def fresh(tiny_folder, tmp_path):
    def make(cache: str, name: str = ROW):
        return case_of(name, **GRID, methods=(name,), models=(str(tiny_folder),), cache_dir=str(tmp_path / cache),
                       results_dir=str(tmp_path / "results"))
    return make


def held(case) -> dict[str, torch.Tensor]:
    return {fqn: linear.weight.detach().clone() for fqn, linear in case.model.linears.items()}


class Killed(BaseException):
    pass


def test_a_killed_tuning_goes_on_where_it_was_and_solves_nothing_again(fresh, monkeypatch):
    whole = fresh("whole")
    hold_weights(whole, plan(whole))
    wanted = held(whole)

    first = fresh("killed")
    planned = plan(first)

    def stop(what, done, total):
        if what.startswith("scales") and done > total // 2:
            raise Killed

    first.progress.update = stop
    with pytest.raises(Killed):
        hold_weights(first, planned)
    first.model.originals.restore()  # the next cell of this process, if it goes on, must see the full model
    assert all(torch.equal(weight, first.model.originals.weights[fqn]) for fqn, weight in held(first).items())

    second, solved = fresh("killed"), []
    planned, plain = plan(second), solver.solve
    monkeypatch.setattr(solver, "solve", lambda *args, **more: solved.append(args) or plain(*args, **more))
    rounds = []
    second.progress.update = lambda what, done, total: rounds.append(done) if what.startswith("scales") else None
    hold_weights(second, planned)
    assert not solved and rounds[0] > 0
    assert all(torch.equal(weight, wanted[fqn]) for fqn, weight in held(second).items())


def test_a_result_says_the_divergence_of_every_round_and_stores_no_bit_more(fresh):
    tuned, plain = fresh("one"), fresh("one", ROW.replace("tune=3", "tune=0"))
    result, _ = compute_cell(tuned)
    before, _ = compute_cell(plain)
    assert len(result.bits.notes["tuned_kl"]) == 3 and "tuned_kl" not in before.bits.notes
    assert result.bits.stored == before.bits.stored
    assert result.stages["scores"] == before.stages["scores"]  # what is tuned is scored and planned alike
    assert result.stages["plan"] == before.stages["plan"] and result.stages["weights"] != before.stages["weights"]


def test_groups_over_an_order_of_columns_that_linears_share_are_tuned_too(fresh):
    case = fresh("order", "GPTQ-native[act_order=true,tune=1]")
    true, _ = true_plan(case, plan(case))
    assert len(true.notes["tuned_kl"]) == 1
    case = fresh("grouped", "TaCQ-budget-native[act_order=true,group=32,tune=1]")
    true, _ = true_plan(case, plan(case))
    assert any(layer.ordered for layer in true.layers.values())


def test_a_tuned_row_diverges_less_on_what_it_read(fresh):
    tuned = fresh("two")
    true, _ = true_plan(tuned, plan(tuned))
    kl = true.notes["tuned_kl"]
    assert kl[-1] < kl[0]
