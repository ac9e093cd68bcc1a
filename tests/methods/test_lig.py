"""Layer integrated gradients: captum's numbers, completeness, and a layer whose attribution is known."""

import numpy as np
import pytest
import torch

import methods  # noqa: F401  (registers)
from core.architecture import find_linears
from core.registry import SCORERS
from streams.answers import baseline, batch
from streams.integrated import Paths, quadrature
from tests.methods.test_heads import ctx_of, documents
from tests.tiny import tiny_model

FAMILIES = ("llama", "qwen2", "gemma2", "opt")


def paths_of(model, doc=1, steps=20, kind="mean", **params):
    calib = documents()
    ctx = ctx_of(model, "LIG", calib, **params)
    return Paths(ctx, batch(calib, [doc], "cpu"), baseline(ctx, [0, 1, 2], kind), steps), ctx, calib


def test_the_quadrature_is_exact_for_polynomials():
    points, weights = quadrature(5)
    assert weights.sum() == pytest.approx(1)
    assert all((weights * points**p).sum() == pytest.approx(1 / (p + 1)) for p in range(10))


@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_of_blocks_and_linears_are_complete(family):
    """At 64 steps within 1 % of what a layer accounts for, or of a tenth of the whole way where that is less.

    OPT's ReLU has kinks, and its whole way is a small sum of large parts: there 1 % of the parts.
    """
    model = tiny_model(family)
    paths, ctx, _ = paths_of(model, steps=64)
    ways = []
    for at in range(3):
        one = paths.block(at)
        ways.append(one.difference)
        assert abs(one.gap) < 0.01 * (float(one.values.abs().sum()) if family == "opt" else abs(one.difference))
        names = [fqn for fqn, block in ctx.block_of.items() if block == at]
        for linear in paths.linears(at, [ctx.linears[fqn] for fqn in names]):
            parts = float(linear.values.abs().sum())
            least = parts if family == "opt" else max(abs(linear.difference), 0.1 * abs(ways[0]))
            assert abs(linear.gap) < 0.01 * least
    # from any block on, the way from the baseline to the document is the same
    assert ways == pytest.approx([ways[0]] * 3, rel=1e-3, abs=1e-4) and abs(ways[0]) > 1e-2


@pytest.mark.parametrize("layer", ["model.layers.0", "model.layers.1", "model.layers.1.self_attn.o_proj",
                                   "model.layers.2.mlp.gate_proj"])
def test_attributions_are_captums(layer):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed (requirements-dev.txt)")
    model = tiny_model("llama")
    paths, _, calib = paths_of(model, steps=20)
    ids = torch.as_tensor(calib.tokens[1])[None]
    real = model.get_input_embeddings()(ids).detach()
    at = np.flatnonzero(calib.loss_mask[1][1:])

    def f(embeddings):
        logp = model(inputs_embeds=embeddings).logits.log_softmax(-1)
        return torch.stack([logp[:, t, ids[0, t + 1]] for t in at]).mean(0)

    lig = attr.LayerIntegratedGradients(f, model.get_submodule(layer))
    want = lig.attribute(real, baselines=paths.empty, n_steps=20, method="gausslegendre")
    want = (want[0] if isinstance(want, tuple) else want)[0].detach()
    block = int(layer.split(".")[2])
    if layer.count(".") == 2:
        found = paths.block(block).values
    else:
        (found,) = (one.values for one in paths.linears(block, [find_linears(model)[0][layer]]))
    torch.testing.assert_close(found, want.float(), rtol=1e-3, atol=1e-5)


def test_steps_in_several_batches_give_the_same():
    model = tiny_model("llama")
    whole, few = (paths_of(model, batch_tokens=n)[0].block(1) for n in (4096, 40))
    torch.testing.assert_close(whole.values, few.values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "zero", "pad"])
def test_notes_say_how_complete_each_document_is(kind):
    model = tiny_model("llama")
    scores = SCORERS.get("LIG").fn(ctx_of(model, "LIG", documents(), baseline=kind, lig_docs=2))
    gaps = scores.notes["completeness"]
    assert [one["document"] for one in gaps] == ["d0", "d1"]
    worst = max(abs(one["gap"] / one["difference"]) for one in gaps)
    assert f"largest {100 * worst:.1f} % of f(x) - f(baseline)" in scores.notes["say"]
    # at zero embeddings (the tiny model's padding is one) RMSNorm has no gradient to integrate: the notes must show it
    assert worst < 0.05 if kind == "mean" else worst > 0.5
    assert "at 20 steps, worst layer of each of 2 documents" in scores.notes["say"]
    assert len({float(v) for v in scores.values.values()}) == 3


def test_channels_of_a_block_are_its_rows():
    model = tiny_model("llama")
    ctx = ctx_of(model, "LIG-channel", documents(), lig_docs=1, ig_steps=4)
    scores = SCORERS.get("LIG-channel").fn(ctx)
    one = paths_of(model, doc=0, steps=4)[0]
    one.empty = baseline(ctx, [0], "mean").expand_as(one.empty)  # of the one document that is read
    one = Paths(ctx, one.asked, baseline(ctx, [0], "mean"), 4)
    (linear,) = one.linears(1, [ctx.linears["model.layers.1.mlp.up_proj"]])
    torch.testing.assert_close(scores.values["model.layers.1.mlp.up_proj"][:, 0],
                               linear.values.abs().sum(0) / 9, rtol=1e-4, atol=1e-7)
    assert scores.values["model.layers.1.mlp.down_proj"].shape == (32, 1)
