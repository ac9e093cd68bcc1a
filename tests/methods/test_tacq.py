"""Gradient sums and TaCQ's saliencies: closed forms on tiny models, and the published code's numbers on the real one.
"""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import methods  # noqa: F401  (registers)
from core.architecture import find_linears
from core.digest import array_digest
from core.errors import UserError
from core.model import load_model
from core.registry import METHODS, SCORERS
from core.types import CalibSet, ModelRef
from methods.tacq import saliency
from streams.gradients import KINDS, _MeanCrossEntropy, gradient_sums
from tests.tiny import CONFIGS, calib_set, context, tiny_model

ABLATIONS = ("TaCQ", "TaCQ-weight", "TaCQ-fisher", "TaCQ-gradient", "TaCQ-absgrad", "TaCQ-MSG", "TaCQ-QAL")


def documents(tokens, masks=None) -> CalibSet:
    tokens = tuple(np.asarray(t, dtype=np.int64) for t in tokens)
    masks = masks or [np.ones(len(t), bool) for t in tokens]
    return CalibSet("quiz", tuple(f"doc{i}" for i in range(len(tokens))), tokens, tuple(masks), 0, "t")


def by_hand(model, calib):
    """kind -> fqn -> sum, and the losses, by plain autograd: one document at a time, all gradients at once."""
    linears = find_linears(model)[0]
    weights = [lin.weight.requires_grad_(True) for lin in linears.values()]
    sums = {kind: {fqn: torch.zeros_like(lin.weight) for fqn, lin in linears.items()} for kind in KINDS}
    losses = []
    for tokens, mask in zip(calib.tokens, calib.loss_mask):
        ids, wanted = torch.tensor(tokens)[None], torch.tensor(mask)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        terms = [cross_entropy(logits[t - 1], ids[0, t]) for t in range(1, len(tokens)) if wanted[t]]
        loss = torch.stack(terms).mean()
        losses.append(float(loss.detach()))
        for fqn, g in zip(linears, torch.autograd.grad(loss, weights)):
            for kind, term in (("abs", g.abs()), ("square", g**2), ("sum", g)):
                sums[kind][fqn] += term
    model.requires_grad_(False)
    return sums, losses


def assert_same(found, wanted, rtol=1e-4):
    """Relative Frobenius error of every linear."""
    assert set(found) == set(wanted)
    for fqn, value in wanted.items():
        assert found[fqn].dtype == torch.float32 and found[fqn].shape == value.shape
        assert float(value.norm()) > 0 and float((found[fqn] - value).norm() / value.norm()) < rtol, fqn


def state_of(model) -> dict:
    named = (*model.named_parameters(), *model.named_buffers())
    state = {n: (array_digest(p), p.dtype, p.requires_grad, p.grad is None, id(p)) for n, p in named}
    return state | {"training": [m.training for m in model.modules()]}


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_sums_against_plain_autograd(family):
    model, calib = tiny_model(family), calib_set(4)
    assert len({len(t) for t in calib.tokens}) > 1  # a pooled mean over tokens would differ
    found = gradient_sums(model, find_linears(model)[0], calib)
    sums, losses = by_hand(model, calib)
    for kind in KINDS:
        assert_same(found.sums[kind], sums[kind])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    assert found.skipped == 0


def test_only_the_kinds_asked_for():
    model, calib = tiny_model("llama"), calib_set(3)
    linears = find_linears(model)[0]
    every = gradient_sums(model, linears, calib).sums
    for kind in KINDS:
        # some of the linears, backwards
        one = gradient_sums(model, dict(list(linears.items())[:0:-3]), calib, (kind,)).sums
        assert set(one) == {kind} and set(one[kind]) < set(linears)
        assert all(torch.equal(value, every[kind][fqn]) for fqn, value in one[kind].items())
    with pytest.raises(ValueError, match="mean"):
        gradient_sums(model, linears, calib, ("abs", "mean"))


def test_loss_mask_marks_targets():
    """The answer's own tokens count, predicted from the ones before; a mark on the first token has nothing to predict
    it.
    """
    model, rng = tiny_model("llama"), np.random.default_rng(0)
    tokens = [rng.integers(3, 250, n) for n in (12, 20)]
    masks = [np.arange(12) >= 9, np.isin(np.arange(20), (0, 1, 19))]
    answers, everything = documents(tokens, masks), documents(tokens)
    found = gradient_sums(model, find_linears(model)[0], answers)
    sums, losses = by_hand(model, answers)
    for kind in KINDS:
        assert_same(found.sums[kind], sums[kind])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    assert abs(found.losses[0] / by_hand(model, everything)[1][0] - 1) > 1e-3


@pytest.mark.parametrize("grad_dtype", ("float32", "bfloat16", "float16"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_the_model_is_left_as_found(dtype, grad_dtype):
    """Weights bit by bit, dtypes, grad flags, old gradients, training mode, hooks; also when the pass fails."""
    model = tiny_model("llama").to(dtype)
    # kept wide beside a 16-bit model, as families do
    model.model.rotary_emb.inv_freq.data = model.model.rotary_emb.inv_freq.float() * 1.000001
    model.model.layers[1].train()
    model.model.norm.weight.requires_grad_(True).grad = torch.ones_like(model.model.norm.weight)
    before, linears = state_of(model), find_linears(model)[0]
    gradient_sums(model, linears, calib_set(2), grad_dtype=grad_dtype)
    assert state_of(model) == before and float(model.model.norm.weight.grad.sum()) == 32
    with pytest.raises(RuntimeError, match="after one document"):
        gradient_sums(model, linears, calib_set(2), grad_dtype=grad_dtype, progress=stop)
    assert state_of(model) == before
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def stop(what, done, total):
    if done == 1:
        raise RuntimeError("after one document")


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_a_16_bit_model_is_differentiated_in_float32(dtype):
    model, calib = tiny_model("llama").to(dtype), calib_set(3)
    found = gradient_sums(model, find_linears(model)[0], calib)
    sums, losses = by_hand(model.float(), calib)
    assert_same(found.sums["abs"], sums["abs"])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)


@pytest.mark.parametrize(("grad_dtype", "near"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_16_bit_gradients_are_near(grad_dtype, near):
    """A few per cent of float32; the sums themselves stay float32."""
    model, calib = tiny_model("llama", initializer_range=0.1).bfloat16(), calib_set(4)
    linears = find_linears(model)[0]
    wide, narrow = (gradient_sums(model, linears, calib, grad_dtype=d) for d in ("float32", grad_dtype))
    for kind in KINDS:
        assert_same(narrow.sums[kind], wide.sums[kind], 2 * near if kind == "square" else near)
    assert not torch.equal(narrow.sums["abs"]["model.layers.0.mlp.up_proj"],
                           wide.sums["abs"]["model.layers.0.mlp.up_proj"])
    np.testing.assert_allclose(narrow.losses, wide.losses, rtol=near)


def test_never_two_gradients_at_once():
    """A hook of the test's own, which runs before the streaming one, counts the gradients alive."""
    model = tiny_model("llama")
    linears = find_linears(model)[0]
    alive = []

    def count(_weight):
        alive.append(sum(p.grad is not None for p in model.parameters()))

    for lin in linears.values():
        lin.weight.requires_grad_(True).register_post_accumulate_grad_hook(count)
    gradient_sums(model, linears, calib_set(2))
    assert alive == [1] * (2 * len(linears))
    assert all(p.grad is None for p in model.parameters())


def test_tied_linears_share_their_whole_gradient():
    model, calib = tiny_model("llama"), calib_set(2)
    first, second = model.model.layers[0].mlp, model.model.layers[2].mlp
    second.up_proj.weight = first.up_proj.weight
    found = gradient_sums(model, find_linears(model)[0], calib)
    sums, _ = by_hand(model, calib)
    for kind in KINDS:
        assert_same(found.sums[kind], sums[kind])
        one, two = (found.sums[kind][f"model.layers.{block}.mlp.up_proj"] for block in (0, 2))
        assert torch.equal(one, two) and one.data_ptr() != two.data_ptr()  # a safetensors file refuses shared memory


def test_documents_without_a_target_are_skipped_and_counted():
    model, calib = tiny_model("llama"), calib_set(2)
    linears = find_linears(model)[0]
    masks = [np.ones(1, bool), calib.loss_mask[0], np.zeros(3, bool), calib.loss_mask[1]]
    mixed = documents([[5], calib.tokens[0], [7, 8, 9], calib.tokens[1]], masks)
    found, plain = gradient_sums(model, linears, mixed), gradient_sums(model, linears, calib)
    assert found.skipped == 2 and found.losses == plain.losses
    assert all(torch.equal(found.sums["abs"][f], plain.sums["abs"][f]) for f in linears)


@pytest.mark.parametrize(("calib", "says"), [
    (documents([]), "calibration set of quiz is empty"),
    (documents([[5], [6]]), "every one of the 2 calibration documents of quiz has fewer than two tokens"),
    (documents([[5, 6], [6]], [np.array([True, False]), np.ones(1, bool)]), "loss_mask leaves no token to predict"),
])
def test_nothing_to_learn_from_is_one_sentence(calib, says):
    model = tiny_model("llama")
    model.forward = None  # the check comes before any heavy work
    with pytest.raises(UserError, match=says):
        gradient_sums(model, find_linears(model)[0], calib)


def test_unknown_dtype_and_broken_weights_are_named():
    model = tiny_model("llama")
    linears = find_linears(model)[0]
    with pytest.raises(UserError, match="in float32, bfloat16, float16, not in 'float8'"):
        gradient_sums(model, linears, calib_set(1), grad_dtype="float8")
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match=r"document 'doc0' is nan in float32"):
        gradient_sums(model, linears, calib_set(1))


def test_an_overflow_of_16_bit_gradients_is_an_error_not_a_rank():
    """The loss is finite; what flows back into one linear is beyond 65504."""
    model = tiny_model("llama")
    linears, name = find_linears(model)[0], "model.layers.2.mlp.down_proj"

    def amplify(_module, _inputs, out):
        out.register_hook(lambda g: g * 6e4 * 6e4)

    linears[name].register_forward_hook(amplify)
    assert len(gradient_sums(model, linears, calib_set(1)).losses) == 1
    said = r"abs of gradients of model\.layers\.\d\.\S+ is not finite in float16; use --grad_dtype fp32"
    with pytest.raises(UserError, match=said):
        gradient_sums(model, linears, calib_set(1), grad_dtype="float16")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_loss_in_slices_is_the_loss(dtype, monkeypatch):
    """Two rows a slice, a logit large enough to overflow a plain exp, rows in any number."""
    monkeypatch.setattr("streams.gradients.SLICE", 100)
    logits = (torch.randn(9, 50, generator=torch.Generator().manual_seed(0)) * 60).to(dtype)
    rows, targets = torch.tensor([0, 2, 3, 4, 7]), torch.tensor([1, 49, 0, 3, 3])
    ours, plain = logits.clone().requires_grad_(), logits.clone().float().requires_grad_()
    loss, wanted = _MeanCrossEntropy.apply(ours, rows, targets), cross_entropy(plain[rows], targets)
    loss.backward(), wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    torch.testing.assert_close(ours.grad, plain.grad.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2,
                               atol=1e-7)


def saliency_context(name, model, calib, **params):
    """A context whose gradients and corrupt model are computed here, as the harness would."""
    spec = SCORERS.get(name)
    ctx = context(model, spec, calib, **params)
    sums = gradient_sums(model, ctx.linears, calib).sums
    generator = torch.Generator().manual_seed(3)
    noise = {f: 0.1 * torch.randn(lin.weight.shape, generator=generator) for f, lin in ctx.linears.items()}
    corrupt = {f: (lin.weight + noise[f]).to(lin.weight.dtype) for f, lin in ctx.linears.items()}
    # read afresh, as from the store
    ctx.gradients, ctx.corrupted = lambda kind: dict(sums[kind]), lambda: dict(corrupt)
    return spec, ctx, sums, corrupt


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_each_ablation_is_its_formula(name, dtype):
    model = tiny_model("llama").to(dtype)
    spec, ctx, sums, corrupt = saliency_context(name, model, calib_set(3))
    found, before = spec.fn(ctx), {f: array_digest(lin.weight) for f, lin in ctx.linears.items()}
    assert found.granularity == spec.granularity == "element" and set(found.values) == set(ctx.linears)
    for fqn, lin in ctx.linears.items():
        w, wq = lin.weight.double(), corrupt[fqn].double()
        absolute, square, plain = (sums[kind][fqn].double() for kind in KINDS)
        wanted = {"TaCQ": w.abs() * absolute * (w - wq).abs(), "TaCQ-weight": w.abs(), "TaCQ-fisher": square,
                  "TaCQ-gradient": plain.abs(),
                  "TaCQ-absgrad": absolute, "TaCQ-MSG": w.abs() * absolute, "TaCQ-QAL": absolute * (wq - w).abs()}[name]
        torch.testing.assert_close(found.values[fqn].double(), wanted, rtol=1e-5, atol=1e-12)
        assert found.values[fqn].dtype == torch.float32 and bool((found.values[fqn] >= 0).all())
    again = spec.fn(ctx)  # the cached sums and the weights are as they were
    assert all(torch.equal(found.values[f], again.values[f]) for f in ctx.linears)
    assert before == {f: array_digest(lin.weight) for f, lin in ctx.linears.items()}


@pytest.mark.parametrize("name", ("TaCQ", "TaCQ-QAL"))
def test_published_takes_the_difference_in_fp16(name):
    model = tiny_model("llama").bfloat16()
    spec, ctx, sums, corrupt = saliency_context(name, model, calib_set(2), published=True)
    quirk = spec.fn(ctx).values
    clean = spec.fn(saliency_context(name, model, calib_set(2))[1]).values
    for fqn, lin in ctx.linears.items():
        w = lin.weight.half()
        wanted = sums["abs"][fqn] * (w - corrupt[fqn].half()).float()
        assert torch.equal(quirk[fqn], (wanted * w.float()).abs() if name == "TaCQ" else wanted.abs())
        torch.testing.assert_close(quirk[fqn], clean[fqn], rtol=1e-2, atol=1e-6)
    assert any(not torch.equal(quirk[f], clean[f]) for f in quirk)


@pytest.mark.parametrize("name", ABLATIONS)
def test_what_the_scores_depend_on_is_declared(name):
    spec, corrupt = SCORERS.get(name), {"base", "corrupt", "published"} if name in ("TaCQ", "TaCQ-QAL") else set()
    assert set(spec.params) == (set() if name == "TaCQ-weight" else {"grad_dtype"} | corrupt)
    assert spec.needs == (() if name == "TaCQ-weight" else ("gradients",))
    kinds = {"TaCQ-weight": (), "TaCQ-fisher": ("square",), "TaCQ-gradient": ("sum",)}
    assert spec.gradients == kinds.get(name, ("abs",))
    found = METHODS.get(name)
    assert (found.scorer, found.allocator, found.paper, found.budgeted) == (name, "topk_keep", "arXiv:2504.07389", True)


# ---- the published code's numbers on the real model ----

REP = ("model.layers.0.self_attn.q_proj", "model.layers.14.self_attn.k_proj", "model.layers.14.mlp.gate_proj",
       "model.layers.29.mlp.down_proj")


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "tacq"


@pytest.fixture(scope="module")
def real(real_model):
    return load_model(str(real_model), ModelRef("m", "r", "bfloat16"), torch.device("cpu"))


def tensors(golden, name):
    """A golden file by linear; the rows it holds are the first ones of the weight."""
    from safetensors.torch import load_file

    return {key.removesuffix(".weight"): value for key, value in load_file(golden / f"{name}.safetensors").items()}


def kept(golden, bits):
    """The published mask [out, in] of each representative linear, whole."""
    layers = json.loads((golden / "per_layer.json").read_text())
    shapes = {name.removesuffix(".weight"): layers["layers"][bits][name]["shape"] for name in layers["order"]}
    total = sum(r * c for r, c in shapes.values())
    summary = json.loads((golden / "summary.json").read_text())[bits]
    flags = torch.zeros(total, dtype=torch.bool)
    flags[tensors(golden, f"mask_{bits}")["flat_indices"].long()] = True
    assert total == summary["n_scored"] and int(flags.sum()) == int(0.0035 * total) == summary["k"] == 371589
    flat = flags.split([r * c for r, c in shapes.values()])
    masks = {fqn: part.reshape(shapes[fqn]) for fqn, part in zip(shapes, flat)}
    assert all(int(masks[f].sum()) == layers["layers"][bits][f"{f}.weight"]["kept"] for f in shapes)
    return masks, summary["threshold_min_kept"]


def golden_saliency(golden, real, bits, gradients, published=True):
    """Ours of the stored rows, from the golden corrupt weights."""
    linears, corrupt = find_linears(real)[0], tensors(golden, f"weights_{bits}")
    return {f: saliency(linears[f].weight.detach()[: len(g)], g, corrupt[f"corrupt.{f}"], published)
            for f, g in gradients.items()}


@pytest.mark.real
@pytest.mark.parametrize("bits", ("2bit", "3bit"))
def test_golden_saliency_and_mask(golden, real, bits):
    """B and C; the 2-bit run shares the stored gradients, the 3-bit run made its own, 5e-7 away."""
    gradients, wanted = tensors(golden, "abs_grad_sum"), tensors(golden, f"importances_{bits}")
    found, (masks, threshold) = golden_saliency(golden, real, bits, gradients), kept(golden, bits)
    assert set(found) == set(REP)
    for fqn, value in found.items():
        if bits == "2bit":
            assert torch.equal(value, wanted[fqn].abs())
        assert float((value - wanted[fqn].abs()).norm() / wanted[fqn].norm()) < 1e-5
        assert torch.equal(value >= threshold, masks[fqn][: len(value)])
    wide = golden_saliency(golden, real, bits, gradients, published=False)
    # the default is near and not the same
    assert all(0 < float((wide[f] - found[f]).norm() / found[f].norm()) < 1e-5 for f in REP)


@pytest.mark.real
@pytest.mark.slow
def test_golden_gradients(golden, real):
    """A: 14 documents, 8035 tokens, a bf16 model differentiated in float32; then the mask from our own gradients."""
    text = json.loads((golden / "calibration_tokens.json").read_text())["sequences"]
    linears, before = find_linears(real)[0], {n: array_digest(p) for n, p in real.named_parameters()}
    found = gradient_sums(real, linears, documents(text), ("abs",))
    np.testing.assert_allclose(found.losses, json.loads((golden / "summary.json").read_text())["losses"], rtol=1e-5)
    wanted = tensors(golden, "abs_grad_sum")
    ours = {f: found.sums["abs"][f][: len(g)] for f, g in wanted.items()}
    for fqn, g in wanted.items():
        assert float((ours[fqn] - g).norm() / g.norm()) < 1e-4
        assert float(((ours[fqn] - g).abs() / g).median()) < 1e-4
    for bits in ("2bit", "3bit"):
        masks, threshold = kept(golden, bits)
        assert all(torch.equal(s >= threshold, masks[f][: len(s)])
                   for f, s in golden_saliency(golden, real, bits, ours).items())
    assert before == {n: array_digest(p) for n, p in real.named_parameters()}
