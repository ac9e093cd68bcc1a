"""The circuit-aware method: units, whole heads and neurons, true bits, and the model of two branches."""

import numpy as np
import pytest
import torch

import methods  # noqa: F401  (registers)
from core.architecture import find_blocks, find_heads, find_linears, find_mlps
from core.errors import UserError
from core.forward import call, pad
from core.registry import ALLOCATORS, METHODS, QUANTIZERS, SCORERS
from core.types import Budget, Scores
from quantization.allocators.common import AllocContext
from quantization.bits import layer_bits, weights_of
from tests.methods.test_heads import ctx_of, documents
from tests.tiny import tiny_model


def scored(model, **params) -> Scores:
    return SCORERS.get("circuit").fn(ctx_of(model, "circuit", documents(), ig_steps=8, **params))


def allocation(model, scores, ratio=0.3, allocator="circuit_fraction", **options):
    linears, block_of = find_linears(model)
    shapes = {fqn: tuple(lin.weight.shape) for fqn, lin in linears.items()}
    ctx = AllocContext(shapes, block_of, budget=Budget(4.0, group_size=16), scores=scores,
                       options={"fp16_ratio": ratio} | options, attention=lambda: find_heads(model),
                       mlps=lambda: find_mlps(model))
    return ALLOCATORS.get(allocator).fn(ctx)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "opt"])
def test_neurons_and_heads_are_found(family):
    model = tiny_model(family)
    for mlp in find_mlps(model):
        assert mlp.neurons == 64 and len(mlp.into) == (1 if family == "opt" else 2)
    scores = scored(model)
    assert set(scores.notes["kinds"].values()) == {"heads", "neurons"}
    assert set(scores.values) == set(find_linears(model)[0])
    assert all(torch.isfinite(v).all() and (v >= 0).all() for v in scores.values.values())


def test_a_head_is_kept_whole_with_its_key_value_head_and_never_more_than_the_ratio():
    model = tiny_model("llama")
    scores = scored(model)
    layers, notes = allocation(model, scores, ratio=0.3)
    heads = np.array(scores.notes["heads"])  # [blocks, heads]
    wanted = {tuple(at) for at in np.argwhere(heads >= np.sort(heads.ravel())[-3])}  # 3 of 12 are at most 30 %
    for block, one in enumerate(find_heads(model)):
        for head in range(one.heads):
            part = slice(head * one.width, (head + 1) * one.width)
            kept = (block, head) in wanted
            keep = {name: np.zeros((32, 32), bool) if layers[fqn].keep is None else layers[fqn].keep
                    for name, fqn in (("q", one.q), ("o", one.o), ("k", one.k))}
            assert keep["q"][part].all() == kept == keep["o"][:, part].all()
            if kept:
                group = one.kv_head(head)
                assert keep["k"][group * one.width:(group + 1) * one.width].all()
    assert notes["kept_units"] == {"heads": 3, "neurons": int(0.3 * 3 * 64)}


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0])
def test_bits_are_between_nf4_and_sixteen(ratio):
    model = tiny_model("llama")
    layers, _ = allocation(model, scored(model), ratio)
    shapes = {fqn: tuple(lin.weight.shape) for fqn, lin in find_linears(model)[0].items()}
    bits = sum(layer_bits(layers[fqn], shape) for fqn, shape in shapes.items()) / weights_of(shapes)
    assert {0.0: bits == 4.5, 0.2: 5.5 < bits < 8, 1.0: bits > 16}[ratio], bits


def test_the_model_of_two_branches_answers_as_the_dense_one():
    pytest.importorskip("bitsandbytes")
    from quantization.inference import split_model

    model = tiny_model("llama")
    layers, _ = allocation(model, scored(model), 0.2)
    ids, mask = pad([[5, 6, 7, 8], [9, 10]], "cpu")
    dense = tiny_model("llama")
    for fqn, linear in find_linears(dense)[0].items():
        linear.weight.data.copy_(QUANTIZERS.get("bnb-nf4-split").fn(linear.weight.detach(), layers[fqn]))
    split = split_model(model, layers)
    assert not find_blocks_linears(split)
    with torch.no_grad():
        torch.testing.assert_close(call(split, ids, mask).logits, call(dense, ids, mask).logits, rtol=1e-4, atol=1e-4)


def find_blocks_linears(model) -> list:
    return [m for block in model.model.layers for m in block.modules() if isinstance(m, torch.nn.Linear)]


def test_scores_of_other_shapes_and_experts_are_one_sentence():
    with pytest.raises(UserError, match="circuit_fraction keeps heads and neurons; combine it with a scorer of these"):
        allocation(tiny_model("llama"), Scores("layer", {}, "nats"))
    model = tiny_model("llama")
    block = find_blocks(model)[1][1]
    block.mlp.extra = torch.nn.Linear(64, 32)
    with pytest.raises(UserError, match=r"no feed-forward part of single neurons in block 1 \(2 linears lead back"):
        find_mlps(model)


def test_the_native_row_is_of_the_sources_form():
    spec = METHODS.get("circuit-native")
    assert (spec.allocator, spec.quantizer, spec.native) == ("circuit_fraction", "bnb-nf4-split", True)


def bits_of(model, layers) -> float:
    shapes = {fqn: tuple(lin.weight.shape) for fqn, lin in find_linears(model)[0].items()}
    return sum(layer_bits(layers[fqn], shape) for fqn, shape in shapes.items()) / weights_of(shapes)


def kept_heads(model, layers) -> set[tuple[int, int]]:
    """Heads whose columns of o are kept whole."""
    kept = set()
    for block, one in enumerate(find_heads(model)):
        keep = layers[one.o].keep
        kept |= {(block, head) for head in range(one.heads)
                 if keep is not None and keep[:, head * one.width:(head + 1) * one.width].all()}
    return kept


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_complement_of_the_best_and_of_the_worst_units_is_quantized(family):
    model = tiny_model(family)
    scores = scored(model)
    best, told = allocation(model, scores, 0.25, "circuit_complement", bits=2)
    worst, _ = allocation(model, scores, 0.25, "circuit_complement", bits=2, first="worst")
    none, _ = allocation(model, scores, 0.0, "circuit_complement", bits=2)
    flat = sorted((value, (block, head)) for block, row in enumerate(scores.notes["heads"])
                  for head, value in enumerate(row))
    assert told["kept_units"] == {"heads": 3, "neurons": 48}
    assert kept_heads(model, best) == {at for _, at in flat[-3:]}
    assert kept_heads(model, worst) == {at for _, at in flat[:3]}
    assert all(layer.bits == 2 and layer.form == "grid" for layer in best.values())
    assert all(layer.keep is None for layer in none.values())
    for one in find_heads(model):  # a kept head of the worst has its key/value head too, whatever the others' scores
        for head in {head for block, head in kept_heads(model, worst) if find_heads(model)[block] == one}:
            group = one.kv_head(head)
            assert worst[one.k].keep[group * one.width:(group + 1) * one.width].all()


@pytest.mark.parametrize("units", ["heads", "neurons"])
def test_one_kind_of_unit_alone(units):
    model = tiny_model("llama")
    layers, told = allocation(model, scored(model), 0.25, "circuit_complement", bits=2, units=units)
    assert told["kept_units"] == ({"heads": 3, "neurons": 0} if units == "heads" else {"heads": 0, "neurons": 48})
    kept = {fqn for fqn, layer in layers.items() if layer.keep is not None}
    assert all(("self_attn" in fqn) == (units == "heads") for fqn in kept) and kept


@pytest.mark.parametrize("target", [4.6, 6.0, 9.0])
def test_random_units_at_the_stored_bits_of_others(target):
    model = tiny_model("llama")
    scores = SCORERS.get("circuit-random").fn(ctx_of(model, "circuit-random", documents(), seed=3))
    layers, told = allocation(model, scores, stored_bits=target)
    more = bits_of(model, layers)
    # a neuron of a tiny model is 3 · 32 of 27 648 weights at 11.5 bits more, 0.04 bits
    assert target - 0.05 < more <= target, told
    again = SCORERS.get("circuit-random").fn(ctx_of(model, "circuit-random", documents(), seed=3))
    other = SCORERS.get("circuit-random").fn(ctx_of(model, "circuit-random", documents(), seed=4))
    assert all(torch.equal(scores.values[fqn], again.values[fqn]) for fqn in scores.values)
    assert not all(torch.equal(scores.values[fqn], other.values[fqn]) for fqn in scores.values)
    with pytest.raises(UserError, match="stored_bits=4 is less than NF4 alone stores"):
        allocation(model, scores, stored_bits=4.0)


def test_static_heads_are_the_best_of_every_block():
    model = tiny_model("llama")
    scores = SCORERS.get("heads-norm").fn(ctx_of(model, "heads-norm", documents()))
    layers, told = allocation(model, scores, allocator="heads_a_block", bits=3, heads=2)
    norms = np.array(scores.notes["heads"])
    assert kept_heads(model, layers) == {(block, int(head)) for block in range(3)
                                         for head in np.argsort(-norms[block])[:2]}
    assert told["kept_units"] == {"heads": 6, "neurons": 0}
    with pytest.raises(UserError, match="--dynamic_heads 5 is more than the 4 heads of a block; give 1 to 4"):
        allocation(model, scores, allocator="heads_a_block", bits=3, heads=5)


def test_a_harmful_head_may_be_kept_without_a_threshold():
    model = tiny_model("llama")
    scores = SCORERS.get("heads-ablation").fn(ctx_of(model, "heads-ablation", documents()))
    assert min(map(min, scores.notes["heads"])) < 0  # a random model has heads that harm its answers
    assert allocation(model, scores, 1.0)[1]["kept_units"] == {"heads": 12, "neurons": 0}
    above = sum(value >= 0.1 * max(map(max, scores.notes["heads"])) for row in scores.notes["heads"] for value in row)
    assert allocation(model, scores, 1.0, attn_importance_threshold=0.1)[1]["kept_units"]["heads"] == above < 12
