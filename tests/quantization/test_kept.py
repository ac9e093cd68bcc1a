"""Kept weights are stored in the model's own 16-bit dtype: fp16 models keep eleven digits, not bf16's eight."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import quantization  # noqa: F401  (registers)
from core.architecture import find_blocks, find_linears
from core.registry import QUANTIZERS
from core.types import Aid, LayerPlan
from quantization.apply import Originals
from quantization.bits import index_bits, layer_bits
from quantization.packing.forms import pack_nearest, packed, unpack_nearest, unpacked
from quantization.solvers.kept import Float8, sixteen_bit
from quantization.solvers.rtn import dequantized
from tests.tiny import calib_set, tiny_model

ROWS, COLS = 24, 48
PLANS = {"gptq": LayerPlan(bits=3, group_size=16, keep=np.random.default_rng(0).random((ROWS, COLS)) < 0.1),
         "spqr": LayerPlan(bits=3, group_size=16, scale_bits=3, zero_bits=3, form="bilevel", ordered=True),
         "squeezellm": LayerPlan(bits=2, group_size=COLS, form="codebook")}
OPTIONS = {"gptq": {}, "spqr": {"threshold": 0.05}, "squeezellm": {"magnitude_share": 0.1}}


def tiny_parts(dtype):
    """A model of ``dtype``, its blocks, its linears and their blocks."""
    model = tiny_model("llama").to(dtype)
    return model, find_blocks(model)[1], *find_linears(model)


def solved(name: str, kept_dtype):
    """A linear of fp16 weights, as a solver left it."""
    rng = torch.Generator().manual_seed(1)
    weight, x = torch.randn(ROWS, COLS, generator=rng).half().float(), torch.randn(200, COLS, generator=rng)
    fisher = torch.rand(ROWS, COLS, generator=rng)
    aid = Aid("a", hessian=x.T @ x, fisher=fisher, options=OPTIONS[name], kept_dtype=kept_dtype)
    return weight, QUANTIZERS.get(name).fn(weight, PLANS[name], aid)


@pytest.mark.parametrize("name", PLANS)
def test_kept_weights_take_the_dtype_that_is_named(name):
    for kept_dtype in (torch.float16, torch.bfloat16):
        weight, stored = solved(name, kept_dtype)
        kept = stored.values[torch.tensor(stored.layer.keep)]
        assert len(kept) > 20 and stored.parts["kept"].dtype == kept_dtype
        assert torch.equal(kept.to(kept_dtype).float(), kept)
        assert torch.equal(kept.bfloat16().float(), kept) == (kept_dtype == torch.bfloat16)
        arrays = packed(stored)
        assert 8 * sum(a.nbytes for a in arrays.values()) == layer_bits(stored.layer, tuple(weight.shape))
        assert torch.equal(unpacked(arrays, stored.layer, tuple(weight.shape), kept_dtype=kept_dtype), stored.values)
    assert torch.equal(solved(name, None)[1].values, stored.values)  # bf16 where nothing is said, as ever


def test_eight_bit_floats_are_nearest_and_hold_three_times_the_largest():
    weight = torch.tensor([0.0, 1e-9, 0.011, -0.3, 0.7, 2.0])
    eight = Float8.over(0.7)
    near = eight.through(weight)
    assert near[5] == 2.0 and torch.equal(eight.through(near), near)
    assert ((near - weight).abs() <= weight.abs() / 16 + 2.0**(eight.exponent - 9)).all()
    assert eight.through(torch.tensor([1e9])) == 448 * 2.0**eight.exponent
    assert Float8.over(0.0).through(torch.zeros(2)).tolist() == [0, 0]


def test_solved_with_kept_weights_in_eight_bits():
    rng = torch.Generator().manual_seed(1)
    weight, x = torch.randn(ROWS, COLS, generator=rng), torch.randn(200, COLS, generator=rng)
    losses = {}
    for bits in (8, 16):
        layer = replace(PLANS["gptq"], kept_bits=bits, form="log", scale_bits=6)
        stored = QUANTIZERS.get("gptq").fn(weight.clone(), layer, Aid("a", hessian=x.T @ x))
        arrays = packed(stored)
        assert 8 * sum(a.nbytes for a in arrays.values()) == layer_bits(stored.layer, (ROWS, COLS))
        assert torch.equal(unpacked(arrays, stored.layer, (ROWS, COLS)), stored.values)
        losses[bits] = stored.notes["loss"], layer_bits(layer, (ROWS, COLS))
    assert losses[8][0] < 1.1 * losses[16][0]
    assert losses[16][1] - losses[8][1] > 7 * int(layer.keep.sum())


def test_coded_places_cost_two_bits_more_than_the_mean_gap_has():
    rng = np.random.default_rng(0)
    for share in (0.0005, 0.01, 0.2):
        keep = rng.random((200, 300)) < share
        bits, kind = index_bits(keep, coded=True)
        assert bits <= keep.sum() * (2 + np.log2(keep.size / keep.sum())) + 24 and bits < index_bits(keep)[0]
        assert kind == "places"


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_a_solve_keeps_in_the_dtype_of_the_model(dtype):
    model, blocks, linears, block_of = tiny_parts(dtype)
    originals, kept = Originals(linears), {}
    layers = {f: LayerPlan(bits=3, group_size=8, keep=np.arange(lin.weight.numel()).reshape(lin.weight.shape) % 7 == 0)
              for f, lin in linears.items()}
    originals.solve(layers, "gptq", model=model, blocks=blocks, block_of=block_of, calib=calib_set(),
                    see=lambda fqn, stored: kept.update({fqn: stored.parts["kept"]}))
    for fqn, layer in layers.items():
        assert kept[fqn].dtype == sixteen_bit(dtype) == (torch.bfloat16 if dtype == torch.float32 else dtype)
        assert torch.equal(linears[fqn].weight[torch.tensor(layer.keep)], kept[fqn].to(dtype)), fqn


def test_an_fp16_model_keeps_the_weights_it_was_loaded_with():
    """SqueezeLLM keeps weights as they are; the way through bf16 lost three digits of each."""
    model, blocks, linears, block_of = tiny_parts(torch.float16)
    originals, masks = Originals(linears), {}
    layers = {f: replace(PLANS["squeezellm"], group_size=lin.in_features) for f, lin in linears.items()}
    originals.solve(layers, "squeezellm", model=model, blocks=blocks, block_of=block_of,
                    fisher={f: torch.ones(lin.weight.shape) for f, lin in linears.items()},
                    see=lambda fqn, stored: masks.update({fqn: torch.tensor(stored.layer.keep)}))
    for fqn, mask in masks.items():
        assert torch.equal(linears[fqn].weight[mask], originals.weights[fqn][mask]), fqn


@pytest.mark.parametrize("group", [16, 10])
def test_a_kept_weight_stretches_no_range(group):
    """Round-to-nearest as the solver: the others of its group are stored as if the outlier were an ordinary weight."""
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    keep = np.zeros((8, 32), dtype=bool)
    keep[:, 3] = True
    loud = weight.clone()
    loud[:, 3] = 100.0
    plan = LayerPlan(3, group, keep=keep)
    plain, got = dequantized(weight, replace(plan, keep=None)), dequantized(loud, plan)
    assert torch.equal(got[:, 3], loud[:, 3])
    others = [c for c in range(32) if c != 3]
    assert (got - loud)[:, others].square().mean() < 1.5 * (plain - weight)[:, others].square().mean()
    arrays = pack_nearest(loud, plan)
    assert torch.equal(unpack_nearest(arrays, plan, (8, 32), dtype=torch.float32), got)
    everything = LayerPlan(3, group, keep=np.ones((8, 32), dtype=bool))
    assert torch.equal(dequantized(loud, everything), loud.bfloat16().float())
