"""bitsandbytes rows against independent arithmetic, their true bytes, and what transformers makes of a saved model."""

import sys

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.registry import ALLOCATORS, QUANTIZERS
from core.types import Budget, LayerPlan
from quantization.allocators.common import AllocContext
from quantization.allocators.native import bnb
from quantization.bits import layer_bits
from quantization.solvers.bnb import bnb_layer, eight_bit, four_bit

pytest.importorskip("bitsandbytes")
# 576 and 96: blocks of 128 or 64 cross rows; 32, 35: shorter than one
SHAPES = ((8, 576), (6, 1536), (5, 96), (7, 32), (3, 35))
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
FP4 = tuple(s * v / 12 for s in (1, -1) for v in (0, 1 / 16, 2, 3, 4, 6, 8, 12))
TABLES = {"nf4": np.array(NF4), "fp4": np.array(sorted(FP4))}


def weights(shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    """Rows of very different size, so that a wrong block maximum cannot pass."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 1, (shape[0], 1))
    return torch.tensor(rows, dtype=torch.float32).to(dtype)


def blockwise(weight: torch.Tensor, kind: str, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest of the table to w / max over ``block`` consecutive weights: ŵ and the maxima, float64."""
    flat = weight.double().numpy().ravel()
    largest = np.array([np.abs(flat[i:i + block]).max() for i in range(0, len(flat), block)])
    top = np.repeat(largest, block)[: len(flat)]
    nearest = np.abs((flat / np.where(top == 0, 1, top))[:, None] - TABLES[kind]).argmin(1)
    return (TABLES[kind][nearest] * top).reshape(weight.shape), top.reshape(weight.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ("nf4", "fp4"))
def test_four_bits_are_the_nearest_code_of_each_64(kind, shape):
    weight = weights(shape)
    ours = QUANTIZERS.get(f"bnb-{kind}").fn(weight, bnb_layer(kind, shape))
    expected, _ = blockwise(weight, kind, 64)
    assert ours.dtype == torch.float32 and ours.shape == weight.shape
    np.testing.assert_allclose(ours.double().numpy(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ("nf4", "fp4"))
def test_blocks_of_128_would_not_pass(kind):
    """The oracle tells the block sizes apart, at the width where bitsandbytes' own 128 is wrong."""
    weight = weights((8, 576))
    ours = four_bit(weight, kind)[2].double().numpy()
    assert np.mean(np.abs(blockwise(weight, kind, 128)[0] - ours) > 1e-6) > 0.3
    assert len(four_bit(weight, kind)[1]) == 8 * 576 // 64


@pytest.mark.parametrize("kind", ("nf4", "fp4"))
def test_bfloat16_in_bfloat16_out(kind):
    weight = weights((8, 576), torch.bfloat16)
    ours = four_bit(weight, kind)[2]
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, four_bit(weight.float(), kind)[2].bfloat16())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ("nf4", "fp4", "int8"))
def test_counted_bits_are_the_bytes_that_bitsandbytes_makes(kind, shape):
    weight = weights(shape)
    codes, largest, _ = eight_bit(weight) if kind == "int8" else four_bit(weight, kind)
    assert 8 * (codes.nbytes + largest.nbytes) == layer_bits(bnb_layer(kind, shape), shape)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_int8_is_rows_rounded_to_127_steps(dtype):
    weight = weights((9, 576), dtype)
    weight[4] = 0
    ours = QUANTIZERS.get("bnb-int8").fn(weight, bnb_layer("int8", weight.shape))
    half = weight.half().double().numpy()
    largest = np.abs(half).max(1, keepdims=True)
    steps = 127 * half / np.where(largest == 0, 1, largest)
    codes = eight_bit(weight)[0].numpy()
    assert (np.abs(codes - steps) <= 0.5 + 1e-5).all()  # halves go either way in float32
    assert set(np.abs(codes).max(1)) == {0, 127}
    assert ours.dtype == dtype and not ours[4].any()
    exact = torch.tensor(codes * largest / 127)
    within = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]  # at most one bf16 step
    torch.testing.assert_close(ours, exact.to(dtype), rtol=within, atol=0)


@pytest.mark.parametrize("kind", ("nf4", "fp4", "int8"))
def test_zeros_stay_zeros_and_the_input_is_left_alone(kind):
    zeros, weight = torch.zeros(4, 64), weights((4, 64))
    before = weight.clone()
    fn = QUANTIZERS.get(f"bnb-{kind}").fn
    assert torch.equal(fn(zeros, bnb_layer(kind, (4, 64))), zeros)
    once, twice = (fn(weight, bnb_layer(kind, (4, 64))) for _ in range(2))
    assert torch.equal(once, twice) and torch.equal(weight, before)


def test_plans_and_their_refusals():
    shapes = {"a": (8, 576), "b": (4, 64)}
    assert ALLOCATORS.get("bnb").exempt
    for kind, bits in (("nf4", 4.5), ("fp4", 4.5), ("int8", 8 + 32 / 576)):
        layers, _ = bnb(AllocContext(shapes, {"a": 0, "b": 0}, budget=Budget(4.0), options={"kind": kind}))
        assert layer_bits(layers["a"], shapes["a"]) == bits * 8 * 576 and set(layers) == set(shapes)
    with pytest.raises(UserError, match="kind 'int4' is not one of nf4, fp4, int8"):
        bnb_layer("int4", (4, 64))
    with pytest.raises(UserError, match="form 'grid', 4 bits in groups of 128; use allocator bnb"):
        QUANTIZERS.get("bnb-nf4").fn(torch.ones(4, 128), LayerPlan(4, 128))
    with pytest.raises(UserError, match="NaN or infinity"):
        QUANTIZERS.get("bnb-fp4").fn(torch.full((4, 64), torch.nan), bnb_layer("fp4", (4, 64)))
    with pytest.raises(UserError, match="exceeds 65504"):
        QUANTIZERS.get("bnb-int8").fn(torch.full((4, 64), 1e6), bnb_layer("int8", (4, 64)))


def test_without_bitsandbytes_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        QUANTIZERS.get("bnb-nf4").fn(torch.ones(4, 64), bnb_layer("nf4", (4, 64)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("nf4", "fp4", "int8"))
def test_transformers_makes_the_same_weights(kind, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from core.architecture import find_linears
    from tests.tiny import tiny_model

    # every width a multiple of 64: elsewhere bitsandbytes itself is wrong on a CPU, and ours is right (see above)
    plain = tiny_model("llama", hidden_size=64, intermediate_size=192, head_dim=16).bfloat16()
    plain.save_pretrained(tmp_path)
    four = dict(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=torch.bfloat16)
    config = BitsAndBytesConfig(load_in_8bit=True) if kind == "int8" else BitsAndBytesConfig(**four)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu",
                                                  dtype=torch.bfloat16)
    theirs = find_linears(loaded.dequantize())[0]
    linears = find_linears(plain)[0]
    assert len(linears) == 21 and set(theirs) == set(linears)
    for name, linear in linears.items():
        ours = QUANTIZERS.get(f"bnb-{kind}").fn(linear.weight, bnb_layer(kind, tuple(linear.weight.shape)))
        assert torch.equal(ours, theirs[name].weight.to(torch.bfloat16)), name
        assert not torch.equal(ours, linear.weight), name
