"""SpQR against the numbers of the published quantizer, and its packing against the accountant."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from core.errors import BudgetError, UserError
from core.registry import QUANTIZERS
from core.types import Aid, LayerPlan
from quantization.bits import layer_bits
from quantization.packing.forms import packed, unpacked
from quantization.solvers import spqr
from quantization.solvers.rtn import dequantized
from quantization.solvers.spqr import _prepare, fit_threshold, sensitivity, solve_spqr
from quantization.solvers.spqr_fit import leave_one_out, minmax
from streams.hessians import factorise
from tests.goldens import LAYERS, golden_io

PLAN = LayerPlan(bits=3, group_size=16, scale_bits=3, zero_bits=3, form="bilevel", ordered=True)
Q, DOWN = LAYERS[:2]
OUTLIERS = ("spqr_b3_g16_t0.2_pd1_act", "spqr_b3_g16_t0.3_pd1_act")
CHAOTIC = "spqr_b3_g16_tinf_pd0.01_id"
# the published code against itself on another number of threads (golden/common): codes, layer error
FLOOR, FLOOR_ERROR = 0.002, 2e-4
CHAOS_ERROR = 0.008  # the published code against itself with 1e-6 noise on H, without outliers (golden/spqr)


class Golden:
    """The golden numbers of one checkout, read once a layer."""

    def __init__(self, shared, model):
        self.io, self.folder, self.inputs = golden_io(shared, model), shared / "golden" / "spqr", {}
        self.cases = self.io.cfg("spqr")["cases"]
        self.extra = json.loads((self.folder / "extra.json").read_text())

    def layer(self, name):
        if name not in self.inputs:
            self.inputs[name] = self.io.weight(name), self.io.hessian(name)
        return self.inputs[name]

    def settings(self, case):
        case = self.cases[case]
        order = {"act_order": "activation"}.get(case["permutation_order"], case["permutation_order"])
        return {"threshold": float(case["outlier_threshold"]), "percdamp": case["percdamp"], "order": order}

    def tensor(self, case, name):
        with safe_open(self.folder / f"{case}.safetensors", "pt") as file:
            return file.get_tensor(name)

    def error(self, name, values):
        weight, hessian = self.layer(name)
        delta = weight.double() - values.double()
        return float((delta @ hessian.double() * delta).sum())


@pytest.fixture(scope="module")
def golden(shared, real_model):
    return Golden(shared, real_model)


def made(rows, cols, seed=0, scale=0.02):
    """A heavy-tailed weight and the Hessian of correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(2 * cols + 8, cols)) @ (np.eye(cols) + 0.3 * rng.normal(size=(cols, cols)))
    inputs *= rng.uniform(0.2, 3, cols)
    weight = rng.standard_t(4, size=(rows, cols)) * scale
    return torch.tensor(weight, dtype=torch.float32), torch.tensor(2 / 8 * inputs.T @ inputs, dtype=torch.float32)


def packed_bits(arrays):
    return 8 * sum(array.nbytes for array in arrays.values())


def wrong_tiles(got, want):
    """16-row tiles with another permutation, outlier or value; rows of other tiles share nothing."""
    if not torch.equal(got.parts["perm"], want["perm"]):
        return set(range(len(got.values) // 16))
    far = (got.values - want["dq"]).abs() > 1e-3 * want["scale"].abs().mean()
    far |= torch.tensor(got.layer.keep) ^ want["outlier_mask"]
    return set(torch.nonzero(far.reshape(len(far) // 16, -1).any(1)).flatten().tolist())


@pytest.mark.real
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", OUTLIERS)
def test_golden_with_outliers_code_by_code(golden, case, name):
    weight, hessian = golden.layer(name)
    want, facts = golden.io.load("spqr", case, name), golden.cases[case]["layers"][name]
    got = solve_spqr(weight, hessian, PLAN, published=True, **golden.settings(case))
    assert torch.equal(got.parts["perm"], want["perm"])
    assert (got.layer.keep ^ want["outlier_mask"].numpy()).sum() <= FLOOR * facts["n_outliers"]
    assert (got.parts["codes"] != want["codes_perm"]).float().mean() <= FLOOR
    for ours, theirs, bits in (("scale_codes", "q_scale", 3), ("zero_codes", "q_zero", 3)):
        codes = golden.io.unpack(golden.tensor(case, f"{name}.{theirs}"), bits, got.parts[ours].T.shape).T
        assert (got.parts[ours] != codes).float().mean() <= FLOOR
    wrong = wrong_tiles(got, want)
    assert len(wrong) <= 2  # a tie that rounds the other way spoils its own tile, no other
    for seed in range(8):
        if wrong:
            nudge = 1 + 1e-7 * torch.randn(hessian.shape, generator=torch.Generator().manual_seed(seed))
            nudged = solve_spqr(weight, hessian * (nudge + nudge.T) / 2, PLAN, published=True, **golden.settings(case))
            wrong &= wrong_tiles(nudged, want)
    assert not wrong  # every tile is the golden one, if not at first then with H changed in its last bit
    assert golden.error(name, got.values) == pytest.approx(facts["err"], rel=FLOOR_ERROR)
    assert got.notes["relative_error"] == pytest.approx(facts["err_rel"], rel=FLOOR_ERROR)
    assert got.notes["outlier_share"] == pytest.approx(facts["outlier_share"], rel=FLOOR)


@pytest.mark.real
@pytest.mark.parametrize("name", LAYERS)
def test_golden_without_outliers_by_error(golden, name):
    weight, hessian = golden.layer(name)
    got = solve_spqr(weight, hessian, PLAN, published=True, **golden.settings(CHAOTIC))
    assert got.layer.keep is None and not got.layer.ordered and "perm" not in got.parts
    error = golden.cases[CHAOTIC]["layers"][name]["err"]
    assert golden.error(name, got.values) == pytest.approx(error, rel=CHAOS_ERROR)


@pytest.mark.real
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", (*OUTLIERS, CHAOTIC))
def test_golden_intermediates(golden, case, name):
    weight, hessian = golden.layer(name)
    how = golden.settings(case)
    ready = _prepare(hessian, percdamp=how["percdamp"], order=how["order"], published=True, what=name)
    within = 1e-5 if how["percdamp"] == 1 else 1e-4
    torch.testing.assert_close(ready.diagonal, golden.tensor(case, f"{name}.U_diag"), rtol=within, atol=0)
    columns = weight[:, ready.perm].T.contiguous()
    unit = float((columns.var(1) / ready.diagonal.square()).mean())
    facts = golden.cases[case]["layers"][name]
    assert unit == pytest.approx(facts["outlier_scale"], rel=1e-5)
    assert how["threshold"] * unit == pytest.approx(facts["threshold_abs"], rel=1e-5)
    if name == Q:
        want = golden.tensor(case, f"{name}.loo_err_group0")
        got = leave_one_out(columns[:16], ready.diagonal[:16], 7, published=True).T
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6 * float(want.max()))


VARIANTS = {"simplified_outliers": {"simplified": True}, "identity": {"order": "identity"}, "wbits4": {},
            "percdamp0.01": {"percdamp": 0.01}}


@pytest.mark.real
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_variants_by_error(golden, variant, name):
    weight, hessian = golden.layer(name)
    want = golden.extra[f"spqr t0.2 pd1 act + {variant} {name}"]
    plan = replace(PLAN, bits=4 if variant == "wbits4" else 3)
    got = solve_spqr(weight, hessian, plan, published=True, **VARIANTS[variant])
    assert golden.error(name, got.values) == pytest.approx(want["err"], rel=1e-3)
    assert got.notes["outlier_share"] == pytest.approx(want["share"], rel=5e-3)


@pytest.mark.real
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", (*OUTLIERS, CHAOTIC))
def test_sixteen_bit_storage_costs_next_to_nothing_and_packs_as_counted(golden, case, name):
    weight, hessian = golden.layer(name)
    got = solve_spqr(weight, hessian, PLAN, **golden.settings(case))
    facts = golden.cases[case]["layers"][name]
    assert golden.error(name, got.values) == pytest.approx(facts["err"], rel=0.04 if case == CHAOTIC else 0.01)
    arrays = packed(got)
    assert packed_bits(arrays) == layer_bits(got.layer, tuple(weight.shape))
    assert torch.equal(unpacked(arrays, got.layer, tuple(weight.shape)), got.values)


@st.composite
def solvable(draw):
    """A linear with any raggedness, dead inputs, flat rows and any setting."""
    rows, size = draw(st.integers(1, 40)), draw(st.sampled_from((4, 8, 16, 24, 130)))
    cols = draw(st.integers(1, 150 if size > 100 else 3 * size))
    weight, hessian = made(rows, cols, draw(st.integers(0, 2**16)), scale=10.0 ** draw(st.integers(-5, 2)))
    if draw(st.booleans()):
        dead = torch.rand(cols, generator=torch.Generator().manual_seed(cols)) < draw(st.sampled_from((0.1, 0.6, 1.0)))
        hessian[dead], hessian[:, dead] = 0, 0
    flat = draw(st.sampled_from(("no", "zeros", "constant", "nearly")))
    if flat != "no":
        level = {"zeros": 0, "constant": 7.3, "nearly": 1.0}[flat] * weight.abs().max()
        weight[0] = level + (flat == "nearly") * 1e-6 * weight[0]
    bits, second = draw(st.sampled_from((1, 2, 3, 4, 8))), draw(st.sampled_from((1, 3, 4, 8)))
    how = {"threshold": draw(st.sampled_from((0.0, 0.001, 0.2, 1.0, math.inf))),
           "order": draw(st.sampled_from(("activation", "identity"))), "percdamp": draw(st.sampled_from((0.01, 1.0)))}
    third = draw(st.sampled_from((1, 3, 8)))
    layer = LayerPlan(bits=bits, group_size=size, scale_bits=second, zero_bits=third, form="bilevel", ordered=True)
    return weight, hessian, layer, how


@settings(max_examples=120, deadline=None)
@given(solvable())
def test_counted_bits_are_packed_bytes_and_unpack_is_exact(case):
    weight, hessian, layer, how = case
    shape, before = tuple(weight.shape), (weight.clone(), hessian.clone())
    got = solve_spqr(weight, hessian, layer, **how)
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])
    assert torch.isfinite(got.values).all()
    assert got.layer.ordered == (how["order"] != "identity") and (how["threshold"] < math.inf or got.layer.keep is None)
    arrays = packed(got)
    assert packed_bits(arrays) == layer_bits(got.layer, shape)
    assert torch.equal(unpacked(arrays, got.layer, shape), got.values)
    assert json.loads(json.dumps(got.notes, allow_nan=False)) == got.notes
    assert got.notes["outlier_share"] == (0 if got.layer.keep is None else got.layer.keep.mean())


@pytest.mark.parametrize("published", (True, False))
def test_three_grids_give_every_leave_one_out_error(published):
    rng = torch.Generator().manual_seed(3)
    group, diagonal = torch.randn(9, 50, generator=rng), torch.rand(9, generator=rng) + 0.1
    group[:, 0], group[4, 1], group[5, 1] = 0.25, 4.0, 4.0  # a flat row, and a maximum that occurs twice

    def error(fitted, counted):
        grid = minmax(fitted.amin(0), fitted.amax(0), 7, published=published)
        return ((group - grid.values_(grid.codes(group))) / diagonal[:, None]).square()[counted].sum(0)

    everyone = list(range(9))
    for k, reduction in enumerate(leave_one_out(group, diagonal, 7, published=published)):
        others = [m for m in everyone if m != k]
        saved = error(group, everyone) - error(group[others], others)
        torch.testing.assert_close(reduction, saved, rtol=1e-4, atol=1e-3)


def test_inputs_that_are_always_zero_change_nothing_and_are_never_kept():
    weight, hessian = made(32, 80)
    dead = torch.zeros(80, dtype=torch.bool)
    dead[[3, 17, 50, 79]] = True
    hessian[dead], hessian[:, dead] = 0, 0
    got = solve_spqr(weight, hessian, PLAN, threshold=0.05)
    assert got.layer.keep.any() and not got.layer.keep[:, dead.numpy()].any()
    assert got.notes["damp"] == pytest.approx(float(hessian.diagonal().mean()), rel=1e-5)
    for order in ("activation", "identity"):
        everything = solve_spqr(weight, hessian, PLAN, threshold=0.0, order=order).layer.keep
        assert everything[:, ~dead.numpy()].mean() > 0.9 and not everything[:, dead.numpy()].any()
    loud = torch.where(dead, 100.0, weight)
    assert torch.equal(solve_spqr(loud, hessian, PLAN, threshold=0.05).values, got.values)


def test_error_is_fed_back_and_a_lower_threshold_keeps_more():
    weight, hessian = made(48, 96)
    errors, shares = [], []
    for threshold in (math.inf, 0.3, 0.05):
        got = solve_spqr(weight, hessian, PLAN, threshold=threshold, percdamp=0.01)
        alone = solve_spqr(weight, torch.diag(hessian.diagonal()), PLAN, threshold=threshold, percdamp=0.01)
        delta = weight - alone.values
        assert got.notes["relative_error"] < float((delta @ hessian * delta).sum() / (weight @ hessian * weight).sum())
        errors.append(got.notes["relative_error"])
        shares.append(got.notes["outlier_share"])
    assert shares[0] == 0 < shares[1] < shares[2] and errors[0] > errors[1] > errors[2]


def test_a_flat_row_does_not_coarsen_its_tile():
    weight, hessian = made(16, 32)
    weight[5] = 0.0
    others = [r for r in range(16) if r != 5]
    got, published = (solve_spqr(weight, hessian, PLAN, threshold=math.inf, published=p) for p in (False, True))
    assert (got.values[5] == 0).all()
    assert (got.values - weight)[others].square().sum() < 0.5 * (published.values - weight)[others].square().sum()


def test_the_search_for_a_threshold_meets_the_target():
    weight, hessian = made(96, 128)
    minimum = layer_bits(PLAN, (96, 128)) / weight.numel()
    for target in (minimum + 0.1, 4.5, 6.0):
        threshold, got = fit_threshold(weight, hessian, PLAN, target_bits=target)
        bits = layer_bits(got.layer, (96, 128)) / weight.numel()
        assert target - 0.02 <= bits <= target
        assert torch.equal(solve_spqr(weight, hessian, PLAN, threshold=threshold).values, got.values)
    threshold, got = fit_threshold(weight, hessian, PLAN, target_bits=minimum)
    assert threshold == math.inf and got.layer.keep is None
    with pytest.raises(BudgetError, match=f"at least {minimum:.4f} bits"):
        fit_threshold(weight, hessian, PLAN, target_bits=minimum - 0.001)
    tiny, tiny_hessian = made(3, 5)  # steps of a whole weight: under the target, as near as it goes
    _, got = fit_threshold(tiny, tiny_hessian, PLAN, target_bits=40.0)
    assert layer_bits(got.layer, (3, 5)) / 15 <= 40.0


def test_registered_quantizer_reads_its_options_and_shares_one_factor():
    spec = QUANTIZERS.get("spqr")
    assert spec.needs == ("hessian",) and not spec.sequential
    assert set(spec.options) == {"threshold", "percdamp", "order", "target"}
    weight, hessian = made(32, 64)
    shared = {}
    options = {"threshold": 0.1, "percdamp": 0.1, "order": "identity"}
    got = spec.fn(weight, PLAN, Aid("a.q", hessian, shared, options=options))
    assert torch.equal(got.values, solve_spqr(weight, hessian, PLAN, **options).values)
    held = list(shared.values())
    spec.fn(weight * 2, PLAN, Aid("a.k", hessian, shared, options=options))
    assert len(shared) == 1 and next(iter(shared.values())) is held[0]
    spec.fn(weight, PLAN, Aid("a.v", hessian, shared, options=options | {"percdamp": 1.0}))
    assert len(shared) == 2
    assert torch.equal(spec.fn(weight, PLAN, Aid("a.q", hessian)).values, solve_spqr(weight, hessian, PLAN).values)
    published = spec.fn(weight, PLAN, Aid("a.q", hessian, options={"published": True}))
    assert torch.equal(published.values, solve_spqr(weight, hessian, PLAN, published=True).values)
    with pytest.raises(UserError, match="float32"):
        packed(published)
    aimed = spec.fn(weight, PLAN, Aid("a.q", hessian, options={"target": 5.0}))
    assert 4.98 <= layer_bits(aimed.layer, (32, 64)) / weight.numel() <= 5.0


def test_what_cannot_be_solved_is_refused():
    weight, hessian = made(16, 32)
    broken = hessian.clone()
    broken[3, 3] = math.nan
    with pytest.raises(UserError, match=r"inputs of a\.b are not finite"):
        QUANTIZERS.get("spqr").fn(weight, PLAN, Aid("a.b", broken))
    off_diagonal = hessian.clone()
    off_diagonal[3, 5] = off_diagonal[5, 3] = math.nan
    with pytest.raises(UserError, match="factorised"):
        solve_spqr(weight, off_diagonal, PLAN)
    with pytest.raises(UserError, match="calibration"):
        QUANTIZERS.get("spqr").fn(weight, PLAN, Aid("a.b"))
    for wrong in ({"order": "random"}, {"threshold": -1.0}, {"threshold": math.nan}, {"percdamp": -0.1}):
        with pytest.raises(UserError):
            solve_spqr(weight, hessian, PLAN, **wrong)
    for layer in (LayerPlan(3, 16), replace(PLAN, bits=16), replace(PLAN, zero_bits=None)):
        with pytest.raises(UserError, match="bilevel"):
            solve_spqr(weight, hessian, layer)
    with pytest.raises(UserError, match="32 inputs"):
        solve_spqr(weight, hessian[:16, :16], PLAN)
    with pytest.raises(UserError, match="weights"):
        solve_spqr(torch.full_like(weight, math.nan), hessian, PLAN)


def test_sensitivity_is_the_error_over_the_factor():
    weight, hessian = made(8, 64)
    layer, diagonal = LayerPlan(3, 32), factorise(hessian).diagonal
    got = sensitivity(weight, diagonal, layer)
    assert got.dtype == torch.float32 and got.shape == weight.shape
    want = (weight - dequantized(weight, layer)).double() ** 2 / diagonal.double() ** 2
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_secants_need_few_solutions_and_survive_a_linear_with_one_outlier(monkeypatch):
    counts = []
    plain = spqr.solve_spqr
    monkeypatch.setattr(spqr, "solve_spqr", lambda *args, **kw: counts.append(1) or plain(*args, **kw))
    for seed in range(4):
        weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(seed))
        x = torch.randn(300, 128, generator=torch.Generator().manual_seed(seed + 10))
        _, got = fit_threshold(weight, x.t() @ x, PLAN, target_bits=4.5)
        assert 4.48 <= layer_bits(got.layer, weight.shape) / weight.numel() <= 4.5
    assert len(counts) <= 4 * 6
    # lowering the threshold keeps no more than one weight: every step is too long, and none may reach 0
    def flat(threshold):
        return 3.0 + 1e-6 * (threshold < 1.0), None

    assert spqr._search(flat, 3.5, 3.0)[0] == pytest.approx(3.0, abs=1e-5)
