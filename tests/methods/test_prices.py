"""Prices of levels: against plain loops, and what the allocator buys with them."""

import pytest
import torch

import methods  # noqa: F401  (registers)
from core.registry import SCORERS
from core.types import Budget, LayerPlan, Scores
from quantization.allocators.common import AllocContext, knapsack
from quantization.bits import layer_bits
from quantization.solvers.rtn import dequantized
from streams.gradients import gradient_sums
from tests.tiny import calib_set, context, tiny_model

LEVELS, GROUP = (16, 2, 4, 3), 16  # in any order


def scored(name: str, model, **params) -> Scores:
    spec = SCORERS.get(name)
    return spec.fn(context(model, spec, levels=LEVELS, group_size=GROUP, **params))


def test_fisher_price_is_half_the_mean_of_squared_gradients_times_squared_errors():
    model, calib = tiny_model("llama"), calib_set()
    found = scored("fisher-price", model)
    assert found.levels == (2, 3, 4, 16) and found.unit == "nats" and found.granularity == "linear"
    linears = context(model, SCORERS.get("fisher-price")).linears
    fisher = gradient_sums(model, linears, calib, ("square",)).sums["square"]
    for fqn, value in found.values.items():
        weight = model.get_submodule(fqn).weight.detach()
        for at, bits in enumerate((2, 3, 4)):
            moved = (weight - dequantized(weight, LayerPlan(bits, GROUP))).double()
            want = sum(float(f) * float(m) ** 2 for f, m in zip(fisher[fqn].flatten(), moved.flatten())) / (
                2 * len(calib.tokens))
            assert float(value[at]) == pytest.approx(want, rel=1e-4)
        assert value[3] == 0 and value.shape == (4,) and value[0] > value[2] > 0


def test_relative_error_is_scale_free_and_sees_no_data():
    model = tiny_model("llama")
    one = scored("relative-error", model)
    with torch.no_grad():
        for fqn in one.values:
            model.get_submodule(fqn).weight.mul_(8.0)
    again = scored("relative-error", model)
    assert all(torch.allclose(one.values[f], again.values[f], rtol=1e-3) for f in one.values)
    assert SCORERS.get("relative-error").needs == () and not SCORERS.get("relative-error").gradients
    fqn = next(iter(one.values))
    weight = model.get_submodule(fqn).weight
    want = (weight - dequantized(weight, LayerPlan(3, GROUP))).square().sum() / weight.square().sum()
    assert float(again.values[fqn][1]) == pytest.approx(float(want), rel=1e-4) and again.values[fqn][3] == 0
    with torch.no_grad():
        weight.zero_()
    assert scored("relative-error", model).values[fqn].tolist() == [0, 0, 0, 0]


def test_the_allocator_buys_where_a_bit_saves_most():
    """Two equal linears, one of which loses a hundred times more: it gets the bits, at the same cost."""
    shapes = {"a": (16, 32), "b": (16, 32)}
    budget = Budget(avg_bits=5.75, levels=(2, 4, 8), group_size=32, tolerance=2.0)
    loss = torch.tensor([1.0, 0.1, 0.0])
    scores = Scores("linear", {"a": loss, "b": 100 * loss}, "nats", levels=(2, 4, 8))
    layers, _ = knapsack(AllocContext(shapes=shapes, block_of={"a": 0, "b": 1}, budget=budget, scores=scores))
    assert layers["b"].bits > layers["a"].bits
    assert sum(layer_bits(layers[f], shapes[f]) for f in shapes) <= 5.75 * 2 * 16 * 32
