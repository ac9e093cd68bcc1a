"""Transforms: the model computes what it did, by families; the scales of SmoothQuant; what cannot be folded."""

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig

from core.activations import Activations
from core.architecture import find_heads, find_linears
from core.errors import UserError
from core.forward import call, pad
from quantization.activations import quantizing
from quantization.transforms.fold import rotate, smooth, structure
from quantization.transforms.parts import find_parts
from tests.tiny import CONFIGS, VOCAB, tiny_model

IDS, MASK = pad([list(range(3, 60)), [9, 8, 7]], "cpu")
ROTATED = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "opt")


def uneven(family: str, **changes):
    """A tiny model whose norms have gains, and biases if they have any, that matter."""
    model, generator = tiny_model(family, **changes), torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return call(model, IDS, MASK, last_only=False).logits


def inputs(model) -> dict[str, torch.Tensor]:
    """max |x| of every linear's channels."""
    most, hooks = {}, []
    for fqn, linear in find_linears(model)[0].items():
        hooks.append(linear.register_forward_pre_hook(lambda _m, args, fqn=fqn: most.update(
            {fqn: args[0].reshape(-1, args[0].shape[-1]).abs().amax(0)})))
    call(model, IDS[:1], MASK[:1])
    for hook in hooks:
        hook.remove()
    return most


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ROTATED)
def test_a_rotated_model_computes_what_it_did(family, tied):
    model = uneven(family, tie_word_embeddings=tied)
    before, weights = logits(model), {fqn: lin.weight.clone() for fqn, lin in find_linears(model)[0].items()}
    rotate(model, 7)
    real = MASK.bool()
    torch.testing.assert_close(logits(model)[real], before[real], rtol=0, atol=1e-4)
    assert not any(torch.allclose(weights[fqn], lin.weight) for fqn, lin in find_linears(model)[0].items())
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_smoothed_model_computes_what_it_did(family, tied):
    model = uneven(family, tie_word_embeddings=tied)
    before, weights = logits(model), {fqn: lin.weight.clone() for fqn, lin in find_linears(model)[0].items()}
    smooth(model, inputs(model), 0.5)
    real = MASK.bool()
    torch.testing.assert_close(logits(model)[real], before[real], rtol=0, atol=1e-4)
    changed = {fqn for fqn, lin in find_linears(model)[0].items() if not torch.equal(weights[fqn], lin.weight)}
    assert changed == {fqn for norm in find_parts(model).norms for fqn in norm.readers} - {"lm_head"}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_scales_are_those_of_the_paper(alpha):
    model = uneven("llama")
    linears, before, most = find_linears(model)[0], tiny_model("llama"), inputs(model)
    one = find_heads(model)[1]
    old = find_linears(before)[0]
    smooth(model, most, alpha)
    after = inputs(model)
    for j in range(32):
        w = max(float(old[fqn].weight[:, j].abs().max()) for fqn in (one.q, one.k, one.v))
        s = float(most[one.q][j]) ** alpha / w ** (1 - alpha)
        torch.testing.assert_close(linears[one.k].weight[:, j], old[one.k].weight[:, j] * s, rtol=1e-5, atol=1e-7)
        assert float(after[one.q][j]) * s == pytest.approx(float(most[one.q][j]), rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("change", ["smooth", "rotate"])
def test_activations_at_four_bits_lose_less_where_channels_are_uneven(change):
    model = tiny_model("llama")
    for block in model.model.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight[3] = 40.0
    for fqn, linear in find_linears(model)[0].items():
        if not fqn.endswith(("o_proj", "down_proj")):
            linear.weight[:, 3] /= 40.0
    before = logits(model)

    def loss() -> float:
        with quantizing(model, Activations(bits=4), {}):
            return float((logits(model) - before)[MASK.bool()].norm())

    plain = loss()
    smooth(model, inputs(model), 0.5) if change == "smooth" else rotate(model, 0)
    assert loss() < 0.6 * plain


@torch.no_grad()
def test_the_seed_draws_the_rotation_and_down_reads_a_turned_input():
    models = [tiny_model("llama") for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2)):
        rotate(model, seed)
    assert torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)
    assert not torch.equal(models[0].lm_head.weight, models[2].lm_head.weight)
    seen, plain = {}, tiny_model("llama")
    for name, model in (("plain", plain), ("turned", models[0])):
        down = model.model.layers[0].mlp.down_proj
        down.register_forward_pre_hook(lambda _m, args, name=name: seen.update({name: args[0]}))
        call(model, IDS[:1], MASK[:1])
    assert not torch.allclose(seen["plain"], seen["turned"], atol=1e-2)
    torch.testing.assert_close(seen["plain"].norm(dim=-1), seen["turned"].norm(dim=-1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_skeleton_has_the_same_parameters(family):
    model = uneven(family, tie_word_embeddings=True)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(model.config)
    structure(skeleton)
    rotate(model, 0)
    assert {n: tuple(p.shape) for n, p in skeleton.named_parameters()} == {
        n: tuple(p.shape) for n, p in model.named_parameters()}


def post_norm():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB,
        word_embed_proj_dim=32, do_layer_norm_before=False, init_std=0.3)).eval().requires_grad_(False)


@pytest.mark.parametrize("make, said", [
    (lambda: tiny_model("gemma2"), "the norm model.layers.0.post_attention_layernorm of Gemma2ForCausalLM is read by "
                                   "no linear"),
    (lambda: tiny_model("falcon"), "has a bias, which transformer.h.0.mlp.dense_h_to_4h has no bias to take up"),
    (lambda: tiny_model("llama", hidden_size=36, head_dim=8, intermediate_size=46),
     "no Hadamard matrix of order 46"),
    (post_norm, "; use --transform")])
def test_what_cannot_be_rotated_is_one_sentence(make, said):
    with pytest.raises(UserError, match=said) as error:
        rotate(make(), 0)
    assert "\n" not in str(error.value)
