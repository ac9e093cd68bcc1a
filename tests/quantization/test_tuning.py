"""Tuning of scales and kept weights: what is stored stays packed as counted, gradients are those of autograd."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.storage import STORED_SCALES
from core.types import LayerPlan
from quantization.bits import layer_bits, stored_grid
from quantization.packing.forms import packed, unpacked
from quantization.solvers.gptq import Solver, solve
from quantization.tuning import RATE, Tunable, Tuning
from streams.divergence import log_chances
from tests.quantization.test_gptq import random_case
from tests.tiny import tiny_model

CPU = torch.device("cpu")


def plan_of(form: str, keep: np.ndarray | None, group: int = 12) -> LayerPlan:
    """A plan at 2 bits; group 12 leaves a narrow last group of 32 columns."""
    scales = "fp16" if form == "grid" else form
    return replace(stored_grid(2, group, **STORED_SCALES[scales]), keep=keep, kept_bits=16 if form == "grid" else 8)


def solved(form: str, kept: bool = True, **how):
    weight, hessian = random_case()
    keep = np.zeros(weight.shape, dtype=bool)
    keep.flat[::37] = kept
    return solve(weight, hessian, plan_of(form, keep if kept else None), how=Solver(kept_dtype=torch.bfloat16, **how))


@pytest.mark.parametrize("how", [{}, {"act_order": True}, {"act_order": True, "static_groups": True}])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("form", ["grid", "log", "table"])
def test_what_is_not_moved_is_what_the_solver_left(form, kept, how):
    stored = solved(form, kept, **how)
    same = Tunable(stored, torch.bfloat16, CPU).stored()
    assert torch.equal(same.values, stored.values)
    assert {name: array.tobytes() for name, array in packed(same).items()} == {
        name: array.tobytes() for name, array in packed(stored).items()}


@pytest.mark.parametrize("how", [{}, {"act_order": True}])
@pytest.mark.parametrize("form", ["grid", "log", "table"])
def test_moved_scales_and_kept_weights_are_packed_as_counted(form, how):
    stored = solved(form, **how)
    one = Tunable(stored, torch.bfloat16, CPU)
    torch.manual_seed(0)
    for move in one.moves:
        move.normal_(0, 0.3)
    moved = one.stored()
    arrays = packed(moved)
    assert 8 * sum(array.nbytes for array in arrays.values()) == layer_bits(moved.layer, tuple(moved.values.shape))
    assert torch.equal(unpacked(arrays, moved.layer, tuple(moved.values.shape), torch.bfloat16), moved.values)
    assert torch.equal(moved.parts["codes"], stored.parts["codes"])
    assert not torch.equal(moved.values, stored.values)


@pytest.mark.parametrize("how", [{}, {"act_order": True}])
def test_gradients_are_those_of_autograd(how):
    """Against Ŵ written with autograd: s · 2^δ (q − z), and v + σ ε where weights are kept."""
    one = Tunable(solved("grid", **how), torch.bfloat16, CPU)
    torch.manual_seed(0)
    towards = torch.randn(one.steps.shape)
    delta, epsilon = (torch.zeros_like(move, requires_grad=True) for move in (one.delta, one.epsilon))
    values = one.steps * (one.scale * delta.exp2())[:, one.group_of]
    values = values.masked_scatter(one.keep, one.kept + one.spread * epsilon)
    (values * towards).sum().backward()
    for move in one.moves:
        move.grad = torch.zeros_like(move)
    one.take(towards)
    torch.testing.assert_close(one.delta.grad, delta.grad)
    torch.testing.assert_close(one.epsilon.grad, epsilon.grad)


def test_logarithmic_scales_stay_and_kept_weights_beside_them_move():
    one = Tunable(solved("log"), torch.bfloat16, CPU)
    assert one.delta is None and one.moves == [one.epsilon]
    one.epsilon.fill_(1.0)
    moved = one.stored()
    assert torch.equal(moved.parts["scale"], one.before.parts["scale"])
    assert not torch.equal(moved.parts["kept"].float(), one.before.parts["kept"].float())


@pytest.fixture
def work():
    """A tiny model at 2 bits, with what the full one says of four documents."""
    model = tiny_model("llama")
    linears = {name: module for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear) and "layers" in name}
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, 250, size) for size in (200, 400, 300, 150)]
    with torch.no_grad():
        full = [log_chances(model, ids) for ids in documents]

    def make(rounds: int) -> Tuning:
        tunables = {}
        for name, weight in originals.items():
            width = weight.shape[1]
            tunables[name] = Tunable(solve(weight, torch.eye(width), LayerPlan(2, width)), torch.bfloat16, CPU)
        return Tuning(model, {name: linear.weight for name, linear in linears.items()}, tunables, documents, full,
                      rounds=rounds, seed=0)

    originals = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    return make


def run(tuning: Tuning, earlier: bytes | None = None, states: list | None = None) -> list[float]:
    return tuning.run([].append if states is None else states.append, earlier, lambda what, done, total: None)


def test_the_divergence_falls_and_the_model_holds_what_is_stored(work):
    tuning = work(6)
    kl = run(tuning)
    assert len(kl) == 6 and kl == sorted(kl, reverse=True) and kl[0] > kl[-1]
    for name, one in tuning.tunables.items():
        assert torch.equal(tuning.weights[name].data, one.values().to(tuning.weights[name].dtype))
        # most scales of fp16 have moved, not only what is tuned behind them
        assert (one.stored().parts["scale"] != one.before.parts["scale"]).float().mean() > 0.5
    assert all(weight.grad is None for weight in tuning.weights.values())


def test_a_killed_tuning_goes_on_to_the_same_numbers(work):
    states: list[bytes] = []
    whole = work(3)
    kl = run(whole, states=states)
    again = work(3)
    assert run(again, states[0]) == kl
    for name, one in whole.tunables.items():
        assert torch.equal(one.values(), again.tunables[name].values()), name
    done = work(3)
    assert run(done, states[-1]) == kl  # nothing left to do
    assert all(torch.equal(one.values(), done.tunables[name].values()) for name, one in whole.tunables.items())


def test_every_document_is_read_once_a_round(work):
    tuning = work(2)
    for number in range(2):
        assert sorted(doc for batch in tuning.batches(number) for doc in batch) == [0, 1, 2, 3]
    assert list(tuning.batches(0)) != list(tuning.batches(1)) and math.isfinite(RATE)


def test_what_cannot_move_is_refused(work):
    tuning = work(1)
    weight, hessian = random_case()
    stuck = {name: Tunable(solve(weight, hessian, plan_of("log", None)), torch.bfloat16, CPU)
             for name in tuning.tunables}
    with pytest.raises(UserError, match="nothing to tune"):
        Tuning(tuning.module, tuning.weights, stuck, tuning.documents, tuning.full, rounds=1, seed=0)


def test_shared_weights_are_refused(work):
    tuning = work(1)
    names = list(tuning.tunables)
    with pytest.raises(UserError, match="share a weight"):
        Tuning(tuning.module, tuning.weights | {names[0]: tuning.weights[names[1]]}, tuning.tunables,
               tuning.documents, tuning.full, rounds=1, seed=0)
