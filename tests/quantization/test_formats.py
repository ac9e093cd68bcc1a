"""Formats of exports over random plans: what is read back is what was put into the model."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.architecture import find_linears
from core.errors import UserError
from core.types import LayerPlan
from quantization.apply import Originals
from quantization.packing.bytes import pack_bits
from quantization.packing.checkpoint import Contents, Packed, Rules, Traits, format_of, seal
from quantization.packing.decode import unpack_codes
from quantization.packing.formats.packed import load_packed
from quantization.packing.forms import packed_alone
from quantization.solvers.rtn import dequantized
from tests.tiny import byte_tokenizer, tiny_model

FAMILIES = ("llama", "qwen2", "gemma2", "phi", "opt")  # grouped-query attention, biases, tied embeddings, fc1 and fc2
TOKENS = torch.arange(3, 27)[None]


@st.composite
def layers(draw, plain: bool = False):
    """How one linear of 32 or 64 inputs is stored; ``plain``: on a symmetric grid of whole groups."""
    if not plain and draw(st.integers(0, 5)) == 0:
        return LayerPlan(16, 32)
    bits = draw(st.sampled_from((2, 3, 4, 5, 6, 8)))
    if plain:
        return LayerPlan(bits, 32, zero_bits=0)
    told = draw(st.sampled_from(({}, {"zero_bits": 0}, {"form": "log", "scale_bits": 6},
                                 {"form": "table", "scale_bits": 6, "zero_bits": 0},
                                 {"scale_bits": 32, "zero_bits": 32})))
    return LayerPlan(bits, draw(st.sampled_from((8, 24, 32, 64))), kept_bits=draw(st.sampled_from((8, 16))), **told)


@st.composite
def models(draw, plain: bool = False):
    """A tiny model of some family, tied or not, and a plan of each of its linears."""
    family, seed = draw(st.sampled_from(FAMILIES)), draw(st.integers(0, 99))
    model = tiny_model(family, seed, tie_word_embeddings=draw(st.booleans()))
    model.tie_weights()
    rng, plan = np.random.default_rng(seed), {}
    for fqn, linear in find_linears(model)[0].items():
        layer = draw(layers(plain))
        if not plain and layer.bits < 16 and draw(st.booleans()):
            keep = rng.random(tuple(linear.weight.shape)) < 0.03
            layer = LayerPlan(**{**vars(layer), "keep": keep})
        plan[fqn] = layer
    return model, plan


def contents(model, plan) -> Contents:
    """The model with the plan in it, rounded to nearest."""
    originals, linears = Originals(find_linears(model)[0]), {}
    for fqn, layer in plan.items():
        weight, float_zero = originals.weights[fqn], layer.zero_bits == 32
        originals.put(fqn, dequantized(weight, layer, float_zero=float_zero))
        if layer.bits < 16:
            linears[fqn] = Packed(layer, packed_alone(weight, layer, "rtn-float" if float_zero else "rtn"))
    return Contents(model, byte_tokenizer(), linears, "rtn")


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits


def written(name: str, folder, what: Contents):
    """Write an export as the harness does."""
    sizes = format_of(name).write(folder, what)
    what.tokenizer.save_pretrained(folder)
    seal(folder, {"format": name})
    return sizes


QUIET = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(max_examples=25, **QUIET)
@given(models())
def test_packed_and_plain_exports_come_back_to_the_bit(tmp_path_factory, made):
    from transformers import AutoModelForCausalLM

    what = contents(*made)
    wanted = logits(what.module)
    folder = tmp_path_factory.mktemp("packed")
    sizes = written("packed", folder, what)
    assert torch.equal(logits(load_packed(folder)), wanted)
    assert torch.equal(logits(load_packed(folder, dense=True)), wanted)
    assert sizes.linears == what.counted
    assert sizes.linears + sizes.others == (folder / "model.safetensors").stat().st_size
    plain = tmp_path_factory.mktemp("plain")
    written("hf", plain, what)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(plain)), wanted)


@settings(max_examples=8, **QUIET)
@given(models(plain=True))
def test_compressed_tensors_come_back_to_the_bit(tmp_path_factory, made):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors (requirements-export.txt)")
    from transformers import AutoModelForCausalLM

    what, folder = contents(*made), tmp_path_factory.mktemp("ct")
    wanted = logits(what.module)
    sizes = written("compressed-tensors", folder, what)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"  # whatever the first weight's is
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), wanted)
    counted = what.counted
    assert sizes.linears == counted + sum(sizes.extra.values())


@settings(max_examples=8, **QUIET)
@given(models(plain=True), st.booleans())
def test_mlx_holds_the_same_weights(tmp_path_factory, made, symmetric):
    mx = pytest.importorskip("mlx.core", reason="needs mlx (requirements-export.txt)")
    model, plan = made
    if not symmetric:
        plan = {fqn: LayerPlan(layer.bits, layer.group_size) for fqn, layer in plan.items()}
    what, folder = contents(model, plan), tmp_path_factory.mktemp("mlx")
    sizes = written("mlx", folder, what)
    stored = mx.load(str(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    told, rope = config["quantization"], config.get("rope_parameters")
    assert not rope or config["rope_theta"] == rope["rope_theta"]  # mlx-lm would take 10,000 without it
    for fqn in what.linears:
        values = mx.dequantize(stored[f"{fqn}.weight"], stored[f"{fqn}.scales"], stored[f"{fqn}.biases"],
                               group_size=told[fqn]["group_size"], bits=told[fqn]["bits"])
        near, weight = torch.from_numpy(np.array(values)), model.get_submodule(fqn).weight
        assert (near - weight).abs().max() <= 1e-6 * weight.abs().max()
    counted = what.counted
    assert sizes.linears == counted + sum(sizes.extra.values())


@settings(max_examples=8, **QUIET)
@given(st.sampled_from(("llama", "qwen2")), st.integers(0, 99), st.booleans())
def test_gguf_holds_the_same_weights(tmp_path_factory, family, seed, symmetric):
    import gguf

    model = tiny_model(family, seed)
    rng = np.random.default_rng(seed)
    plan = {fqn: LayerPlan(int(rng.choice((2, 3, 4, 5, 6, 8) if symmetric else (2, 3, 4, 5, 6))), 32,
                           zero_bits=0 if symmetric else None) for fqn in find_linears(model)[0]}
    what, folder = contents(model, plan), tmp_path_factory.mktemp("gguf")
    sizes = written("gguf", folder, what)
    tensors = {t.name: t for t in gguf.GGUFReader(folder / "model.gguf").tensors}
    for name, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v"), ("self_attn.q_proj", "attn_q")):
        tensor = tensors[f"blk.1.{theirs}.weight"]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        weight = model.get_submodule(f"model.layers.1.{name}").weight
        if family == "llama" and name.endswith("q_proj"):  # llama.cpp has the halves of a head interleaved
            weight = weight.view(4, 2, 4, -1).transpose(1, 2).reshape(weight.shape)
        # fp16 rounding of m = −scale · zero point, by half a step of its eleven digits
        exact = symmetric or plan[f"model.layers.1.{name}"].bits == 6
        assert np.abs(values - weight.numpy()).max() <= (0 if exact else 2e-3 * float(weight.abs().max()))
    counted = what.counted
    assert sizes.linears == counted + sum(sizes.extra.values())


@given(st.lists(st.integers(0, 255), min_size=1, max_size=70), st.integers(1, 8))
def test_codes_unpack_by_tensor_operations(values, bits):
    codes = np.array(values) % 2**bits
    assert unpack_codes(torch.from_numpy(pack_bits(codes, bits)), bits, len(codes)).tolist() == codes.tolist()


def test_zero_points_are_no_symmetric_linear_and_eight_bits_of_them_no_q8_0(tmp_path):
    model = tiny_model("llama")
    what = contents(model, {fqn: LayerPlan(8, 32) for fqn in find_linears(model)[0]})
    for name in ("compressed-tensors", "gguf"):
        with pytest.raises(UserError, match="symmetric=true"):
            format_of(name).write(tmp_path, what)


@pytest.mark.parametrize(("changes", "said"), [
    ({"keeps": True}, "single weights"), ({"mixes_groups": True}, "groups of one linear"), ({"bits": (2, 9)}, "9 bits"),
    ({"group": 24}, "groups of 24"), ({"activations": True}, "activations"), ({"forms": frozenset({"slim"})}, "'slim'"),
    ({"family": "phi"}, "phi model"), ({"symmetric": False}, "zero points")])
def test_what_a_rule_forbids_is_said(changes, said):
    rules = Rules(forms=frozenset({"grid"}), asymmetric=False, bits=frozenset({2, 3}), families=("llama",),
                  group=lambda size: size % 32 == 0, groups="blocks of 32")
    row = {"method": "x", "group": 32, "bits": (2,), "symmetric": True, "family": "llama"}
    assert rules.against(Traits(**row)) is None
    assert said in rules.against(Traits(**row | changes))


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gpt_oss"])
def test_what_a_checkpoint_fuses_is_written_as_it_was(tmp_path, family):
    """hf by the checkpoint's own names, for plain transformers; packed by the linears'; other engines' refuse."""
    from transformers import AutoModelForCausalLM

    from benchmarks.tiny_families import tiny_model as tiny_family
    from core.model import ready

    model = ready(tiny_family(family))
    rng, plan = np.random.default_rng(0), {}
    for fqn, linear in find_linears(model)[0].items():
        plan[fqn] = LayerPlan(4, 16, keep=rng.random(tuple(linear.weight.shape)) < 0.03)
    what = contents(model, plan)
    expected = logits(model)
    for name in ("hf", "packed"):
        (tmp_path / name).mkdir()
        written(name, tmp_path / name, what)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert torch.allclose(logits(loaded), expected, atol=1e-6)
    assert torch.equal(logits(ready(loaded)), expected)
    assert torch.equal(logits(load_packed(tmp_path / "packed")), expected)
    row = Traits("TaCQ", fused=True, family=family, symmetric=True, bits=(4,), group=32)
    assert "one parameter" in format_of("mlx").RULES.against(row)
    assert format_of("hf").RULES.against(row) is None
