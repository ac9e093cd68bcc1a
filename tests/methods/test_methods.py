"""Contract of every scorer, closed forms of TAQ, TAQO and TAQoS, and the traps of earlier implementations."""

import numpy as np
import pytest
import torch

import methods  # noqa: F401  (registers)
from benchmarks.tiny_families import tiny_model as tiny_family
from core.digest import array_digest
from core.forward import hidden_of
from core.model import ready
from core.registry import METHODS, SCORERS
from core.types import CalibSet
from harness.stages.scores import check_scores
from methods.taqos import noise
from streams.activations import standardise
from streams.outputs import RESERVOIR, sample_positions, spectral_entropy
from tests.tiny import CONFIGS, byte_tokenizer, calib_set, context, tiny_model


def fake_metric(model, documents):
    """A task metric that really depends on the weights."""
    with torch.no_grad():
        total = sum(float(p.double().abs().sum()) for n, p in model.named_parameters() if "proj" in n)
    return 1.0 / (1.0 + total / 1e4), -total / 1e4


@pytest.mark.parametrize("name", list(SCORERS))
def test_contract(name):
    """Right shapes, finite, deterministic, weights and hooks untouched, only declared parameters read."""
    spec, model = SCORERS.get(name), tiny_model("llama")
    before = {n: array_digest(p) for n, p in model.named_parameters()}
    first, second = (spec.fn(context(model, spec, metric=fake_metric)) for _ in range(2))
    shapes = {f: tuple(m.weight.shape) for f, m in context(model, spec).linears.items()}
    check_scores(first, spec, shapes)
    assert all(torch.equal(first.values[f], second.values[f]) for f in shapes)
    assert before == {n: array_digest(p) for n, p in model.named_parameters()}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all("forward" not in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("name", ("TAQ", "TAQO", "TAQoS"))
def test_scores_on_every_family(name, family):
    spec, model = SCORERS.get(name), tiny_model(family)
    scores = spec.fn(context(model, spec))
    assert len({float(v) for v in scores.values.values()}) == 3  # one a block, and they differ


@pytest.mark.parametrize("name", ("TAQ", "TAQ-raw", "TAQO", "TAQoS"))
def test_batching_does_not_change_scores(name):
    spec, model = SCORERS.get(name), tiny_model("llama")
    one, many = (spec.fn(context(model, spec, batch_tokens=t)) for t in (1, 4096))
    for fqn in one.values:
        torch.testing.assert_close(one.values[fqn], many.values[fqn], rtol=1e-4, atol=1e-5)


def test_an_undeclared_parameter_cannot_be_read():
    ctx = context(tiny_model("llama"), SCORERS.get("TAQO"))
    with pytest.raises(ValueError, match="does not declare; it declares"):
        ctx.param("kl_docs")


def test_entropy_closed_forms():
    assert spectral_entropy(torch.ones(9, 4)) == 0.0  # no variance: no information
    eye = torch.cat([torch.eye(4), -torch.eye(4)])
    assert spectral_entropy(eye) == pytest.approx(np.log(4), rel=1e-9)  # four equal directions
    wide, tall = torch.randn(6, 50), torch.randn(50, 6)
    for z in (wide, tall):
        centred = (z - z.mean(0)).double()
        lam = torch.linalg.svdvals(centred) ** 2
        p = (lam / lam.sum())[lam > 1e-12 * lam.sum()]
        assert spectral_entropy(z) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-6)


def test_reservoir_is_uniform_and_seeded():
    few = sample_positions([10, 20], 0)
    assert [len(p) for p in few] == [10, 20]
    lengths = [300, 500, 200]
    picks = sample_positions(lengths, 1)
    assert sum(map(len, picks)) == RESERVOIR and all(p.max() < n for p, n in zip(picks, lengths))
    assert all(np.array_equal(a, b) for a, b in zip(picks, sample_positions(lengths, 1)))
    assert abs(len(picks[1]) / RESERVOIR - 0.5) < 0.12


def test_variance_and_norm_against_a_plain_pass():
    model, spec = tiny_model("llama"), SCORERS.get("TAQ-raw")
    calib = calib_set(1)
    ids = torch.tensor(calib.tokens[0])[None]
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
    stability = spec.fn(context(model, spec, calib)).notes["stability"]
    h = hidden[1].double()
    assert stability[0] == pytest.approx(-float((h**2).mean() - h.mean() ** 2), rel=1e-4)
    norms = SCORERS.get("TAQO").fn(context(model, SCORERS.get("TAQO"), calib)).notes["activation_norm"]
    assert norms[1] == pytest.approx(float(hidden[2][0, -1].norm()), rel=1e-4)


def test_trap_last_block_is_read_before_the_final_norm():
    """hidden_states[-1] is after the final norm; only ``published`` reproduces that."""
    model, spec, calib = tiny_model("llama"), SCORERS.get("TAQO"), calib_set(1)
    with torch.no_grad():
        after = model(torch.tensor(calib.tokens[0])[None], output_hidden_states=True).hidden_states[-1][0, -1].norm()
    clean = spec.fn(context(model, spec, calib)).notes["activation_norm"]
    quirk = spec.fn(context(model, spec, calib, published=True)).notes["activation_norm"]
    assert quirk[-1] == pytest.approx(float(after), rel=1e-4) and abs(clean[-1] - quirk[-1]) > 0.1
    assert clean[:-1] == pytest.approx(quirk[:-1], rel=1e-5)


def test_standardise_uses_the_sample_deviation():
    z = standardise(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert z.tolist() == [-1.0, 0.0, 1.0]
    assert standardise(torch.ones(4)).tolist() == [0.0] * 4


def test_noise_depends_on_seed_document_and_block_alone():
    base = noise((3, 4), 0, "d", 1)
    assert torch.equal(base, noise((3, 4), 0, "d", 1)) and float(base.abs().max()) <= 0.5
    others = (noise((3, 4), 1, "d", 1), noise((3, 4), 0, "e", 1), noise((3, 4), 0, "d", 2))
    assert all(not torch.equal(base, other) for other in others)
    assert noise((200, 200), 0, "d", 1).std() == pytest.approx((1 / 12) ** 0.5, rel=0.02)


def test_kl_is_the_closed_form_of_the_noisy_forward():
    """One prompt, last block: the head sees norm(h + η), so the KL can be computed by hand."""
    model, spec, calib = tiny_model("llama"), SCORERS.get("TAQoS"), calib_set(1)
    found = spec.fn(context(model, spec, calib)).notes
    ids, seen = torch.tensor(calib.tokens[0])[None], {}
    keep = lambda module, given, out: seen.setdefault("h", out if torch.is_tensor(out) else out[0])  # noqa: E731
    hook = model.model.layers[-1].register_forward_hook(keep)
    with torch.no_grad():
        clean = model(ids).logits[0, -1].log_softmax(-1)
        hook.remove()
        h, last = seen["h"], len(model.model.layers) - 1
        step = float(h[0, -1].max() - h[0, -1].min()) / 15
        noisy = h + step * noise(tuple(h.shape[1:]), 0, calib.doc_ids[0], last)
        moved = model.lm_head(model.model.norm(noisy))[0, -1].log_softmax(-1)
    assert found["step"][last] == pytest.approx(step, rel=1e-5)
    assert found["kl"][last] == pytest.approx(float((clean.exp() * (clean - moved)).sum()), rel=1e-3)


@pytest.mark.parametrize("batch_tokens", [4096, 60])
@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon", "opt", "bloom", "qwen3_moe", "jamba"])
def test_the_kl_of_every_block_is_that_of_a_run_with_noise_there(family, batch_tokens):
    """The stack of disturbed copies against one whole forward pass a block, whose output a hook disturbs."""
    torch.manual_seed(0)
    model = tiny_model(family) if family in CONFIGS else ready(tiny_family(family))
    spec, calib = SCORERS.get("TAQoS"), calib_set(2)
    ctx = context(model, spec, calib, batch_tokens=batch_tokens)
    notes, total = spec.fn(ctx).notes, np.zeros(len(ctx.blocks))
    for doc, tokens in zip(calib.doc_ids, calib.tokens, strict=True):
        ids = torch.tensor(tokens)[None]
        with torch.no_grad():
            clean = model(ids, use_cache=False).logits[0, -1].log_softmax(-1)
            for at, block in enumerate(ctx.blocks):
                def disturb(_module, _inputs, out, at=at, doc=doc):
                    h = hidden_of(out) + notes["step"][at] * noise(tuple(hidden_of(out).shape), 0, doc, at)
                    return h if torch.is_tensor(out) else (h, *out[1:])

                hook = block.register_forward_hook(disturb)
                moved = model(ids, use_cache=False).logits[0, -1].log_softmax(-1)
                hook.remove()
                total[at] += float((clean.exp() * (clean - moved)).sum())
    assert notes["kl"] == pytest.approx(list(total / 2), rel=1e-2, abs=1e-6)


def test_oracle_reports_zero_and_tied_drops_and_restores_weights():
    model, spec = tiny_model("llama"), SCORERS.get("TAQO-oracle")
    flat = spec.fn(context(model, spec, metric=lambda m, n: (0.5, -1.0)))
    assert flat.notes["zero"] == 3 and flat.notes["tied"] == 2
    assert {float(v) for v in flat.values.values()} == {0.5 / 4}  # half of one of the four documents
    smooth = spec.fn(context(model, spec, metric=fake_metric, oracle_metric="loglik"))
    assert smooth.notes["full"] == fake_metric(model, 4)[1]


def test_random_is_seeded_and_magnitude_is_the_weight():
    model = tiny_model("llama")
    spec = SCORERS.get("random")
    a, b, c = (spec.fn(context(model, spec, seed=s)) for s in (0, 0, 1))
    fqn = next(iter(a.values))
    assert a.values[fqn] == b.values[fqn] != c.values[fqn]
    weights = SCORERS.get("magnitude").fn(context(model, SCORERS.get("magnitude")))
    assert all(torch.equal(weights.values[f], lin.weight.abs()) for f, lin in context(model, spec).linears.items())


def test_empty_calibration_is_one_clear_error():
    from core.errors import UserError

    empty = CalibSet("trivia_qa", (), (), (), 0, "t")
    with pytest.raises(UserError, match="calibration set of trivia_qa is empty"):
        SCORERS.get("TAQ").fn(context(tiny_model("llama"), SCORERS.get("TAQ"), empty))


def test_native_rows_are_exempt_and_common_rows_are_not():
    for name in METHODS:
        spec = METHODS.get(name)
        assert spec.budgeted == (not name.endswith("-native") and not name.startswith("bnb-") and name != "fp16")


def test_byte_tokenizer_round_trip():
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer("Answer: é")["input_ids"]) == "Answer: é"
