"""Heads chosen at run time: against the same computed head by head, with a cache and with padding, and their bits."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DiffLlamaConfig

import quantization  # noqa: F401  (registers quantizers)
from core.architecture import find_heads, find_linears
from core.errors import UserError
from core.forward import call, pad
from core.types import LayerPlan
from quantization.apply import Originals
from quantization.bits import layer_bits
from quantization.dynamic import choosing_heads
from quantization.packing.forms import packed_alone
from tests.tiny import COMMON, tiny_model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi")


def plans(model, count: int, mlp: bool = True) -> dict[str, LayerPlan]:
    inside = {fqn for one in find_heads(model) for fqn in (one.q, one.k, one.v, one.o)}
    return {fqn: LayerPlan(3, 8, dynamic_heads=count if fqn in inside else 0) for fqn in find_linears(model)[0]
            if mlp or fqn in inside}


def quantized(model, layers) -> Originals:
    originals = Originals(find_linears(model)[0])
    originals.write(layers, "rtn")
    return originals


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_all_heads_chosen_is_full_precision_and_afterwards_nothing_is_left(family):
    model = tiny_model(family)
    ids, mask = pad([[5, 6, 7, 8, 9], [10, 11]], "cpu")
    whole = call(model, ids, mask).logits
    layers = plans(model, 4, mlp=False)
    originals = quantized(model, layers)
    low = call(model, ids, mask).logits
    with choosing_heads(model, layers, originals.weights):
        torch.testing.assert_close(call(model, ids, mask).logits, whole)
    assert torch.equal(call(model, ids, mask).logits, low) and not torch.allclose(low, whole)


def by_hand(one, weights, codes, hidden, count, rotate) -> torch.Tensor:
    """The attention's output [T, d] of one document, head by head and token by token."""
    versions = []
    for of in (codes, weights):
        heads = []
        for head in range(one.heads):
            rows = slice(head * one.width, (head + 1) * one.width)
            shared = slice(one.kv_head(head) * one.width, (one.kv_head(head) + 1) * one.width)
            q, k, v = (hidden @ of[fqn][part].T for fqn, part in ((one.q, rows), (one.k, shared), (one.v, shared)))
            q, k = rotate(q), rotate(k)
            scores = (q @ k.T) / one.width**0.5
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v)
        versions.append(torch.stack(heads, 1))  # [T, heads, width]
    low, whole = versions
    y = torch.zeros(len(hidden), weights[one.o].shape[0])
    for token in range(len(hidden)):
        best = low[token].norm(dim=-1).topk(count).indices.tolist()
        for head in range(one.heads):
            part = slice(head * one.width, (head + 1) * one.width)
            of, a = (weights, whole) if head in best else (codes, low)
            y[token] += of[one.o][:, part] @ a[token, head]
    return y


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_an_attention_is_what_it_is_head_by_head(count):
    model = tiny_model("llama")
    layers = plans(model, count)
    originals = quantized(model, layers)
    one, seen = find_heads(model)[0], {}
    attention = model.get_submodule(one.q.rpartition(".")[0])
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    hook = attention.register_forward_hook(
        lambda _m, _args, kwargs, out: seen.update(x=kwargs["hidden_states"], turn=kwargs["position_embeddings"],
                                                   y=out[0]), with_kwargs=True)
    with choosing_heads(model, layers, originals.weights):
        call(model, ids, torch.ones_like(ids))
    hook.remove()
    cos, sin = (part[0] for part in seen["turn"])

    def rotate(x):
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[:, half:], x[:, :half]], -1) * sin

    codes = {fqn: linear.weight for fqn, linear in find_linears(model)[0].items()}
    want = by_hand(one, originals.weights, codes, seen["x"][0], count, rotate)
    torch.testing.assert_close(seen["y"][0], want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_cache_and_padding_change_nothing():
    model = tiny_model("llama")
    layers = plans(model, 2)
    originals = quantized(model, layers)
    ids, mask = pad([[5, 6, 7, 8, 9, 10, 11]], "cpu")
    padded, hidden = pad([[5, 6, 7, 8, 9, 10, 11], list(range(20, 32))], "cpu")
    with choosing_heads(model, layers, originals.weights):
        whole = call(model, ids, mask, last=7).logits[0]
        first = call(model, ids[:, :4], mask[:, :4], last=4, use_cache=True)
        rest = call(model, ids[:, 4:], mask, last=3, use_cache=True, past_key_values=first.past_key_values)
        beside = call(model, padded, hidden, last=7).logits[0]
    torch.testing.assert_close(torch.cat([first.logits[0], rest.logits[0]]), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(beside, whole, rtol=1e-4, atol=1e-4)


def test_all_attention_is_stored_both_ways():
    weight, plan = torch.randn(16, 32), LayerPlan(3, 8, dynamic_heads=2)
    assert layer_bits(plan, (16, 32)) == layer_bits(LayerPlan(3, 8), (16, 32)) + 16 * 16 * 32
    arrays = packed_alone(weight, plan, "rtn")
    assert 8 * sum(a.nbytes for a in arrays.values()) == layer_bits(plan, (16, 32))


def test_an_attention_that_counts_its_heads_elsewhere_is_refused_and_left_as_it_was():
    model = tiny_model("opt")
    ids, mask = pad([[5, 6, 7], [8]], "cpu")
    before = call(model, ids, mask).logits
    with pytest.raises(UserError, match="OPTForCausalLM cannot choose heads at run time"):
        with choosing_heads(model, plans(model, 2), Originals(find_linears(model)[0]).weights):
            pass
    assert torch.equal(call(model, ids, mask).logits, before)


def test_a_plan_without_a_choice_changes_nothing():
    model = tiny_model("llama")
    with choosing_heads(model, {fqn: LayerPlan(3, 8) for fqn in find_linears(model)[0]}, {}):
        assert "forward" not in vars(model.get_submodule(find_heads(model)[0].o))


def test_an_attention_that_mixes_its_heads_is_refused():
    """Differential attention subtracts one half of its heads from the other: twice as many heads would be mixed."""
    torch.manual_seed(0)
    config = DiffLlamaConfig(**COMMON)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with pytest.raises(UserError, match="DiffLlamaForCausalLM cannot choose heads at run time"):
        with choosing_heads(model, plans(model, 2), Originals(find_linears(model)[0]).weights):
            pass
