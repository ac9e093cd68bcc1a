"""Heads: exact ablation against brute force, estimates against what they estimate, and where the scores go."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import methods  # noqa: F401  (registers)
from core.architecture import find_heads, find_linears
from core.errors import UserError
from core.registry import SCORERS
from core.types import CalibSet
from methods.heads import CIRCUIT_DOCS, as_lines, stability
from streams.answers import batch, chosen, log_probability
from streams.heads import Heads, ablated
from tests.tiny import context, tiny_model

FAMILIES = ("llama", "qwen2", "gemma2", "opt")
ABLATIONS = ("zero", "mean", "other")


def documents(lengths=(9, 14, 6), answer: int = 3) -> CalibSet:
    """Random tokens of which the last few are the answer."""
    rng = np.random.default_rng(1)
    tokens = tuple(rng.integers(3, 250, n) for n in lengths)
    masks = tuple(np.arange(n) >= n - answer for n in lengths)
    return CalibSet("toy", tuple(f"d{i}" for i in range(len(lengths))), tokens, masks, 0, "t")


def ctx_of(model, name="heads-ablation", calib=None, **params):
    return context(model, SCORERS.get(name), calib or documents(), **params)


def plain(model, calib, doc) -> torch.Tensor:
    """f of one document by a plain forward pass."""
    ids = torch.as_tensor(calib.tokens[doc])[None]
    logp = model(ids).logits[0].log_softmax(-1)
    at = np.flatnonzero(calib.loss_mask[doc][1:])
    return torch.stack([logp[t, ids[0, t + 1]] for t in at]).mean()


def inputs_of_outputs(model, calib, doc) -> list[torch.Tensor]:
    linears, seen = find_linears(model)[0], []
    hooks = [linears[one.o].register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
             for one in find_heads(model)]
    model(torch.as_tensor(calib.tokens[doc])[None])
    for hook in hooks:
        hook.remove()
    return seen


def brute_force(model, calib, ablation) -> np.ndarray:
    """f − f with one head's slice replaced by hand: [documents, blocks, heads], one pass a head."""
    linears, attention = find_linears(model)[0], find_heads(model)
    seen = [inputs_of_outputs(model, calib, doc) for doc in range(len(calib.tokens))]
    means = [torch.cat([of_doc[block] for of_doc in seen]).mean(0) for block in range(len(attention))]
    effects = np.zeros((len(seen), len(attention), attention[0].heads))
    for doc, (block, one) in product(range(len(seen)), enumerate(attention)):
        for head in range(one.heads):
            part = slice(head * one.width, (head + 1) * one.width)

            def change(_module, args, part=part, block=block, doc=doc):
                x, other = args[0].clone(), seen[(doc + 1) % len(seen)][block]
                n, m = x.shape[1], len(other)
                x[..., part] = {"zero": torch.zeros(()), "mean": means[block][part],
                                "other": torch.stack([other[m - 1 - (n - 1 - t) % m] for t in range(n)])[:, part],
                                }[ablation]
                return (x,)

            hook = linears[one.o].register_forward_pre_hook(change)
            changed = plain(model, calib, doc)
            hook.remove()
            effects[doc, block, head] = plain(model, calib, doc) - changed
    return effects


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_answers_log_probability_is_a_plain_pass_of_each_document(family):
    model, calib = tiny_model(family), documents()
    found = log_probability(model, batch(calib, [2, 0, 1], "cpu"))
    want = torch.stack([plain(model, calib, doc) for doc in (2, 0, 1)])
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    twice = log_probability(model, batch(calib, [1, 0], "cpu").repeated(2))
    torch.testing.assert_close(twice, want[[2, 2, 1, 1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ablation", ABLATIONS)
@torch.no_grad()
def test_exact_ablation_is_brute_force(family, ablation):
    model, calib = tiny_model(family), documents()
    want = brute_force(model, calib, ablation)
    notes = SCORERS.get("heads-ablation").fn(ctx_of(model, calib=calib, ablation=ablation, batch_tokens=60)).notes
    np.testing.assert_allclose(np.array(notes["heads"]), want.mean(0), rtol=1e-3, atol=2e-5)
    assert np.abs(want).max() > 1e-3


@torch.no_grad()
def test_blocks_before_the_head_are_not_run_again():
    model, calib = tiny_model("llama"), documents()
    runs, ctx = [], ctx_of(model, calib=calib)
    hooks = [linear.register_forward_hook(lambda *_a, b=b: runs.append(b))
             for b, linear in enumerate(m.mlp.gate_proj for m in model.model.layers)]
    ablated(Heads(ctx, [0, 1, 2], "zero"), batch(calib, [0, 1, 2], "cpu"))
    for hook in hooks:
        hook.remove()
    assert [runs.count(b) for b in range(3)] == [2, 3, 4]  # once untouched, then for the heads of each block up to it


@pytest.mark.parametrize("name", ["heads-attribution", "heads-EAP-IG"])
def test_estimates_are_exact_where_the_model_is_linear_in_its_heads(name, monkeypatch):
    """f linear in the heads' outputs: then the first order is all, and every gradient on the path is the same."""
    model, calib = tiny_model("llama"), documents()
    direction = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))

    def linear_f(model, asked):
        total = torch.zeros(len(asked.docs))
        for block, x in enumerate(seen_by["o"]):
            total = total + (x * asked.mask[..., None] * direction[block]).sum((1, 2))
        return total

    seen_by: dict[str, list] = {}

    def watching(model, asked):
        seen_by["o"] = []
        hooks = [linear.register_forward_pre_hook(lambda _m, args: seen_by["o"].append(args[0]))
                 for linear in (layer.self_attn.o_proj for layer in model.model.layers)]
        model(asked.ids, attention_mask=asked.mask)
        for hook in hooks:
            hook.remove()
        return linear_f(model, asked)

    # heads must not feed each other, or a head's effect is more than its own slice
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
    monkeypatch.setattr("streams.heads.log_probability", watching)
    notes = SCORERS.get(name).fn(ctx_of(model, name, calib, baseline="zero") if name == "heads-EAP-IG"
                                 else ctx_of(model, name, calib, ablation="zero")).notes
    width, want = 8, np.zeros((3, 4))
    for doc in range(3):
        for block, x in enumerate(inputs_of_outputs(model, calib, doc)):
            value = (x * direction[block]).detach()
            want[block] += value.view(len(x), 4, width).sum((0, 2)).numpy() / 3
    np.testing.assert_allclose(np.array(notes["heads"]), want, rtol=2e-3, atol=1e-4)


@torch.no_grad()
def test_a_heads_score_goes_to_its_rows_columns_and_key_value_head():
    model = tiny_model("llama")  # 4 query heads of 8, 2 key/value heads
    values = torch.tensor([[1.0, 5.0, -2.0, 0.5], [9.0, 3.0, 2.0, 4.0], [0.0, 0.0, 7.0, 6.0]])
    lines = as_lines(ctx_of(model), values)
    q, k, v, o, gate = (lines[f"model.layers.0.{n}"] for n in ("self_attn.q_proj", "self_attn.k_proj",
                                                               "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj"))
    assert q.shape == (32, 1) and q[:, 0].tolist() == [1.0] * 8 + [5.0] * 8 + [-2.0] * 8 + [0.5] * 8
    assert k.shape == (16, 1) and k[:, 0].tolist() == [5.0] * 8 + [0.5] * 8 and torch.equal(k, v)
    assert o.shape == (1, 32) and torch.equal(o[0], q[:, 0])
    assert gate.shape == (1, 32) and float(gate.max()) < -2


def test_gemma_heads_are_wider_than_the_hidden_state_says():
    one = find_heads(tiny_model("gemma2", head_dim=16))[0]
    assert (one.heads, one.kv_heads, one.width, [one.kv_head(h) for h in range(4)]) == (4, 2, 16, [0, 0, 1, 1])


@pytest.mark.parametrize("family", ["phi3", "falcon"])
def test_a_fused_model_is_one_sentence(family):
    model = tiny_model(family)
    with pytest.raises(UserError, match=r"has queries, keys and values in one linear .*so single heads cannot be kept"):
        SCORERS.get("heads-ablation").fn(ctx_of(model))


def test_documents_without_answers_and_a_single_one():
    calib = documents()
    bare = CalibSet("toy", calib.doc_ids, calib.tokens, tuple(np.zeros(len(t), bool) for t in calib.tokens), 0, "t")
    model = tiny_model("llama")
    with pytest.raises(UserError, match="no document of toy has an answer"):
        SCORERS.get("heads-ablation").fn(ctx_of(model, calib=bare))
    with pytest.raises(UserError, match="needs two documents; raise --circuit_docs"):
        SCORERS.get("heads-ablation").fn(ctx_of(model, circuit_docs=1, ablation="other"))


def test_stability_is_one_where_all_documents_agree():
    same = torch.arange(40.0).repeat(5, 1)
    assert stability(same, 0) == 1.0
    noisy = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    assert 0 < stability(noisy, 0) < 0.7


def test_batches_do_not_change_scores_and_the_model_stays(monkeypatch):
    model = tiny_model("llama")
    one, many = (SCORERS.get("heads-attribution").fn(ctx_of(model, "heads-attribution", batch_tokens=n))
                 for n in (1, 999))
    for fqn, value in one.values.items():
        torch.testing.assert_close(value, many.values[fqn], rtol=1e-3, atol=1e-5)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_of_a_mixture_documents_of_both_kinds_are_read():
    """It lists the task's documents first."""
    plain_docs = documents(tuple([9] * 10))
    mixed = CalibSet("toy+c4", *[getattr(plain_docs, n) for n in ("doc_ids", "tokens", "loss_mask")], 0, "t",
                     mixed=True)
    assert chosen(ctx_of(tiny_model("llama"), calib=mixed, circuit_docs=4), CIRCUIT_DOCS) == [1, 3, 6, 8]
    assert chosen(ctx_of(tiny_model("llama"), calib=plain_docs, circuit_docs=4), CIRCUIT_DOCS) == [0, 1, 2, 3]
