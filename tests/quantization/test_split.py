"""The split form: its bits, its packed bytes, and the linear of two branches that computes it."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core.errors import UserError
from core.registry import QUANTIZERS
from core.types import LayerPlan
from quantization.bits import layer_bits
from quantization.packing.bytes import unpack_mask
from quantization.packing.forms import packed_alone
from quantization.solvers.bnb import four_bit
from quantization.solvers.split import split_layer

pytest.importorskip("bitsandbytes")
from quantization.inference import CircuitAwareLinear, split_model

SHAPE = (24, 40)


def mask(kind: str, count: int = 7) -> np.ndarray | None:
    places = np.random.default_rng(0).permutation(SHAPE[kind == "columns"])[:count]
    keep = np.zeros(SHAPE, dtype=bool)
    keep[(slice(None), places) if kind == "columns" else places] = True
    return keep


KEEPS = {"columns": mask("columns"), "rows": mask("rows"), "nothing": None, "one column": mask("columns", 1),
         "everything": np.ones(SHAPE, dtype=bool)}


def weight(dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("kind", KEEPS)
def test_kept_lines_are_whole_and_the_rest_is_nf4_of_itself(kind):
    w, layer = weight(), split_layer(KEEPS[kind])
    keep = np.zeros(SHAPE, bool) if layer.keep is None else layer.keep
    values = QUANTIZERS.get("bnb-nf4-split").fn(w, layer)
    assert torch.equal(values[torch.as_tensor(keep)], w[torch.as_tensor(keep)])
    if not keep.all():
        rest = w[torch.as_tensor(~keep)]
        assert torch.equal(values[torch.as_tensor(~keep)], four_bit(rest, "nf4")[2])
        assert not torch.equal(values, w)


@pytest.mark.parametrize("kind", KEEPS)
def test_bits_are_the_packed_bytes_and_say_which_lines(kind):
    layer = split_layer(KEEPS[kind])
    arrays = packed_alone(weight(), layer, "bnb-nf4-split")
    assert layer_bits(layer, SHAPE) == 8 * sum(a.nbytes for a in arrays.values())
    keep = np.zeros(SHAPE, bool) if layer.keep is None else layer.keep
    rest = int((~keep).sum())
    assert layer_bits(layer, SHAPE) <= 16 * (24 * 40 - rest) + 4 * rest + 4 + 32 * -(-rest // 64) + 40
    if keep.any():
        assert np.array_equal(unpack_mask(arrays, SHAPE), keep)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KEEPS)
def test_two_branches_compute_the_dense_linear(kind, bias, tmp_path):
    linear = nn.Linear(SHAPE[1], SHAPE[0], bias=bias, dtype=torch.bfloat16)
    linear.weight.data.copy_(weight())
    layer = split_layer(KEEPS[kind])
    module = CircuitAwareLinear.of(linear, layer)
    dense = QUANTIZERS.get("bnb-nf4-split").fn(weight(), layer)
    x = torch.randn(3, 5, SHAPE[1], generator=torch.Generator().manual_seed(2))
    want = nn.functional.linear(x, dense.float(), linear.bias.float() if bias else None)
    torch.testing.assert_close(module(x), want, rtol=1e-4, atol=1e-4)
    # NF4 by another dtype of arithmetic is the same number rounded
    torch.testing.assert_close(module(x.bfloat16()).float(), want, rtol=5e-2, atol=5e-2)
    # no dense copy: the parts alone, and what numbers them
    lines = sum(SHAPE[not module.by_rows:][:1]) if layer.keep is not None else SHAPE[1]
    stored = layer_bits(layer, SHAPE) // 8
    assert module.nbytes <= stored + 8 * lines + (2 * SHAPE[0] if bias else 0) + 8
    save_file(dict(module.state_dict()), tmp_path / "linear.safetensors")
    again = CircuitAwareLinear(SHAPE[1], SHAPE[0], module.places, by_rows=module.by_rows, dtype=torch.bfloat16,
                               bias=bias)
    again.load_state_dict(load_file(tmp_path / "linear.safetensors"))
    assert torch.equal(again(x), module(x))


def test_what_cannot_be_split():
    keep = np.zeros(SHAPE, bool)
    keep[1, 2] = True
    with pytest.raises(UserError, match="keeps whole rows or whole columns; this mask keeps single weights"):
        QUANTIZERS.get("bnb-nf4-split").fn(weight(), split_layer(keep))
    with pytest.raises(UserError, match="stores the split form, the plan says 'grid'"):
        QUANTIZERS.get("bnb-nf4-split").fn(weight(), LayerPlan(4, 8))
    model = nn.ModuleDict({"a": nn.Linear(40, 24, bias=False)})
    with pytest.raises(UserError, match="a is stored in form 'grid'; only the split form has two branches"):
        split_model(model, {"a": LayerPlan(4, 8)})
    assert isinstance(split_model(model, {"a": split_layer(KEEPS["rows"])})["a"], CircuitAwareLinear)
