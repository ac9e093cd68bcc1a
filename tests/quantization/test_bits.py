"""The accountant against really packed arrays, and the round-to-nearest grids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BudgetError
from core.types import Budget, LayerPlan
from quantization.bits import check_budget, check_groups, fitting_groups, index_bits, layer_bits, make_plan
from quantization.packing.bytes import pack_bits, unpack_bits
from quantization.packing.forms import pack_nearest, unpack_nearest
from quantization.solvers.grid import LogScale, fp16_up
from quantization.solvers.rtn import dequantized, encode


@st.composite
def planned(draw):
    """A weight and any plan that could be made for it."""
    rows, groups = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    size = draw(st.sampled_from((8, 16, 32)))
    cols = max(1, size * groups - draw(st.sampled_from((0, 0, 3))))  # sometimes a ragged last group
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    weight = torch.tensor(rng.normal(size=(rows, cols)) * 10.0 ** draw(st.integers(-4, 2)), dtype=torch.float32)
    bits = draw(st.sampled_from((2, 3, 4, 5, 6, 8, 16)))
    float_zero = draw(st.booleans())
    mixed = draw(st.booleans()) and bits < 8 and not float_zero
    group_bits = rng.integers(1, 9, -(-cols // size)).astype(np.uint8) if mixed else None
    keep = None
    if draw(st.booleans()) and bits < 16:
        kind = draw(st.sampled_from(("few", "many", "columns", "rows")))
        keep = rng.random((rows, cols)) < {"few": 0.02, "many": 0.5, "columns": 0.3, "rows": 0.3}[kind]
        keep = np.repeat(keep[:1], rows, axis=0) if kind == "columns" else keep
        keep = np.repeat(keep[:, :1], cols, axis=1) if kind == "rows" else keep
    dtype = draw(st.sampled_from((torch.bfloat16, torch.float32)))
    widths = {"scale_bits": 32, "zero_bits": 32} if float_zero else {}
    if not float_zero and draw(st.booleans()):
        widths = {"zero_bits": 0}
    if not float_zero and bits < 16 and draw(st.booleans()):
        widths |= {"form": "log", "scale_bits": draw(st.sampled_from((4, 6)))}
        if group_bits is None and draw(st.booleans()):
            widths |= {"form": "table", "zero_bits": 0}
    plan = LayerPlan(bits=bits, group_size=size, **widths, group_bits=group_bits, keep=keep,
                     kept_bits=draw(st.sampled_from((8, 16))))
    return weight.to(dtype), plan, float_zero


@settings(max_examples=150, deadline=None)
@given(planned())
def test_counted_bits_are_packed_bytes_and_unpack_is_exact(case):
    weight, plan, float_zero = case
    arrays = pack_nearest(weight, plan, float_zero=float_zero)
    assert 8 * sum(a.nbytes for a in arrays.values()) == layer_bits(plan, tuple(weight.shape))
    back = unpack_nearest(arrays, plan, tuple(weight.shape), dtype=weight.dtype, float_zero=float_zero)
    assert torch.equal(back, dequantized(weight, plan, float_zero=float_zero))


@given(st.lists(st.integers(0, 255), max_size=40), st.integers(8, 11))
def test_bit_packing_round_trip(values, bits):
    packed = pack_bits(np.array(values, dtype=np.int64), bits)
    assert packed.nbytes == -(-len(values) * bits // 8)
    assert unpack_bits(packed, bits, len(values)).tolist() == values


@pytest.mark.parametrize("bits", (2, 3, 4, 5, 6, 8))
def test_error_is_at_most_half_a_step_and_ends_do_not_clip(bits):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(bits))
    enc = encode(weight, LayerPlan(bits, 32))
    error = (enc.decode() - weight).abs().reshape(16, 2, 32).amax(2)
    # the integer zero point may shift the grid by half a step, so the ends may lie up to one step off
    assert (error <= enc.parts["scale"] * 1.0 + 1e-6).all()
    assert (error.mean() <= enc.parts["scale"].mean() * 0.6)
    assert int(enc.codes.max()) <= 2**bits - 1 and torch.equal(enc.parts["zero"], enc.parts["zero"].round())


def test_closed_form_of_a_small_group():
    """Range [-1, 2] at 2 bits: s = 1, z = 1, so the grid is -1, 0, 1, 2."""
    weight = torch.tensor([[-1.0, -0.4, 0.6, 2.0]])
    enc = encode(weight, LayerPlan(2, 4))
    assert enc.parts["scale"].item() == 1.0 and enc.parts["zero"].item() == 1.0
    assert enc.decode().tolist() == [[-1.0, 0.0, 1.0, 2.0]]


def test_float_zero_grid_hits_both_ends():
    weight = torch.tensor([[0.3, 0.5, 0.9, 1.3]])
    out = encode(weight, LayerPlan(2, 4, scale_bits=32, zero_bits=32), float_zero=True).decode()
    torch.testing.assert_close(out[0, [0, 3]], weight[0, [0, 3]])


def test_zero_padding_of_a_ragged_group_is_a_quirk_not_the_default():
    weight = torch.tensor([[5.0, 5.5, 6.0, 5.0, 5.5, 6.0]])
    plan = LayerPlan(4, 4, scale_bits=32, zero_bits=32)
    clean = (encode(weight, plan, float_zero=True).decode() - weight)[:, 4:].abs().max()
    padded = (encode(weight, plan, float_zero=True, zero_pad=True).decode() - weight)[:, 4:].abs().max()
    assert clean < 1e-6 < 0.05 < padded  # padding drags the minimum to 0 and widens the step


@pytest.mark.parametrize("value", (0.0, 7.0, -7.0))
def test_constant_groups_survive(value):
    weight = torch.full((2, 32), value)
    torch.testing.assert_close(dequantized(weight, LayerPlan(2, 32)), weight, rtol=2e-3, atol=0)


def test_scales_are_fp16_rounded_up():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(1)) * 10 ** torch.linspace(-7, 3, 1000)
    up = fp16_up(values)
    assert (up >= values).all() and torch.equal(up, up.half().float())
    with pytest.raises(ValueError, match="exceeds 65504"):
        fp16_up(torch.tensor([1e6]))


@settings(max_examples=60, deadline=None)
@given(st.integers(-20, 20), st.sampled_from((4, 6)), st.integers(0, 2**16))
def test_logarithmic_scales_round_up_by_an_eighth_of_an_octave_and_come_back_as_themselves(exponent, bits, seed):
    logs = LogScale(exponent, bits)
    every = logs.values(torch.arange(2**bits))
    assert torch.equal(logs.codes(every), torch.arange(2**bits).float()) and torch.equal(logs.up(every), every)
    assert float(every[-1]) == 2.0**exponent and (every[1:] > every[:-1]).all()
    share = torch.rand(50, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.05
    scale = every[0] + share * (every[-1] - every[0])
    up = logs.up(scale)
    assert (up >= scale * (1 - 1e-3)).all() and (up <= scale * 2 ** (1 / 8) * (1 + 1e-3)).all()
    assert logs.up(2 * every[-1]) == every[-1] and logs.up(torch.zeros(())) == every[0]


def test_a_group_of_the_form_log_costs_its_few_bits():
    """64 columns in groups of 16 at 2 bits: codes, 6 bits and a 2-bit zero point a group, one exponent."""
    plan = LayerPlan(2, 16, scale_bits=6, form="log")
    assert layer_bits(plan, (32, 64)) == 32 * 64 * 2 + 32 * 4 * 6 + 32 * 4 * 2 + 8
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    plain = (dequantized(weight, LayerPlan(2, 16)) - weight).square().mean()
    assert (dequantized(weight, plan) - weight).square().mean() < 1.15 * plain


def test_a_table_costs_its_values_once_a_linear_and_no_zero_points():
    """128 columns in groups of 64 at 2 bits: codes, 6 bits a group, one exponent, four fp16 values."""
    plan = LayerPlan(2, 64, scale_bits=6, zero_bits=0, form="table")
    assert layer_bits(plan, (32, 128)) == 32 * 128 * 2 + 32 * 2 * 6 + 8 + 4 * 16
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    plain = (dequantized(weight, LayerPlan(2, 64)) - weight).square().mean()
    assert (dequantized(weight, plan) - weight).square().mean() < 0.6 * plain


def test_known_costs():
    shape = (4, 128)
    assert layer_bits(LayerPlan(4, 128), shape) == 4 * 128 * 4 + 4 * (16 + 4)  # 4.15625 bits a weight
    script = LayerPlan(4, 128, scale_bits=32, zero_bits=32)
    assert layer_bits(script, shape) == 4 * 128 * 4 + 4 * 64  # the TAQ script's grid: +0.5 bit, counted
    assert layer_bits(LayerPlan(16, 128), shape) == 16 * 512
    keep = np.zeros(shape, dtype=bool)
    keep[1, 5] = True
    bits, kind = index_bits(keep)
    assert kind == "csr" and bits == 8 + 8 + 8  # width byte, 4 one-bit row counts, one 7-bit column
    assert layer_bits(LayerPlan(4, 128, keep=keep), shape) == layer_bits(LayerPlan(4, 128), shape) + 16 + bits
    keep[1] = True
    assert index_bits(keep) == (8, "rows") and index_bits(keep.T)[1] == "columns"


def test_groups_that_do_not_divide_name_layer_and_what_fits():
    message = r"group size 128 does not divide the input width of a\.b \(576\).*fit this model: 192, 96, 64"
    with pytest.raises(BudgetError, match=message):
        check_groups({"a.b": (8, 576), "c": (8, 1536)}, 128)
    assert fitting_groups([576, 1536]) == [96, 64, 32]


def test_a_plan_that_misses_its_budget_raises():
    shapes = {"a": (4, 128)}
    plan = make_plan({"a": LayerPlan(4, 128)}, shapes, (0, 0), notes={})
    check_budget(plan, Budget(4.16), "x")
    for bits in (4.15, 4.17):
        with pytest.raises(BudgetError, match=r"stores 4\.1562 bits a weight"):
            check_budget(plan, Budget(bits), "x")
    with pytest.raises(ValueError, match="must plan every one"):
        make_plan({}, shapes, (0, 0), notes={})
