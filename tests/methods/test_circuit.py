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


def allocation(model, scores, ratio=0.3):
    linears, block_of = find_linears(model)
    shapes = {fqn: tuple(lin.weight.shape) for fqn, lin in linears.items()}
    ctx = AllocContext(shapes, block_of, budget=Budget(4.0, group_size=32), scores=scores,
                       options={"fp16_ratio": ratio})
    return ALLOCATORS.get("circuit_fraction").fn(ctx)


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
    assert notes["kept_columns"] == {"heads": 3 * 8, "neurons": int(0.3 * 3 * 64)}


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
    with pytest.raises(UserError, match="circuit_fraction keeps heads and neurons; combine it with the scorer circuit"):
        allocation(tiny_model("llama"), Scores("layer", {}, "nats"))
    model = tiny_model("llama")
    block = find_blocks(model)[1][1]
    block.mlp.extra = torch.nn.Linear(64, 32)
    with pytest.raises(UserError, match=r"no feed-forward part of single neurons in block 1 \(2 linears lead back"):
        find_mlps(model)


def test_the_native_row_is_of_the_sources_form():
    spec = METHODS.get("circuit-native")
    assert (spec.allocator, spec.quantizer, spec.native) == ("circuit_fraction", "bnb-nf4-split", True)
