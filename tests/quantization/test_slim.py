"""SliM-LLM: the golden numbers of the published code, the search, the solver's properties, and what is stored."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.registry import QUANTIZERS
from core.types import Aid, LayerPlan
from quantization.bits import layer_bits
from quantization.packing.forms import packed, unpacked
from quantization.solvers import slim, slim_search
from quantization.solvers.columns import slices
from quantization.solvers.slim import decode, fit, solve_slim
from quantization.solvers.slim_search import assign_bits, group_salience, nearest, search_bits
from streams.hessians import factorise, relative_error
from tests.goldens import LAYERS, golden_io

CASES = tuple(f"slim_b{bits}_g{size}" for bits in (2, 3) for size in (128, 64))
NEAR, FAR = LAYERS[:2], LAYERS[2:]  # the inputs of the first two need one block only


# ---- golden numbers ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def golden(shared, real_model):
    """The reader that lies beside the golden numbers."""
    module = golden_io(shared, real_model)
    module.extra = json.loads((shared / "golden" / "slim_llm" / "extra.json").read_text())
    return module


def captured(golden, real_model, layers: tuple[str, ...]) -> dict[str, list[torch.Tensor]]:
    """Inputs of ``layers`` in the float32 model on the golden tokens, [512, in] a sequence; only blocks needed run."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    how = dict(dtype=torch.float32, attn_implementation="eager")
    model = AutoModelForCausalLM.from_pretrained(str(real_model), **how).model
    model.layers = model.layers[: 1 + max(int(name.split(".")[2]) for name in layers)]
    out = {name: [] for name in layers}
    for name in layers:
        linear = model.get_submodule(name.removeprefix("model."))
        linear.register_forward_pre_hook(lambda _m, args, name=name: out[name].append(args[0][0].clone()))
    ids = load_file(f"{golden.ROOT}/common/token_ids.safetensors")["calib_ids"].long()
    with torch.no_grad():
        for row in ids:
            model(row[None], use_cache=False)
    return out


@pytest.fixture(scope="module")
def near_inputs(golden, real_model):
    return captured(golden, real_model, NEAR)


@pytest.fixture(scope="module")
def far_inputs(golden, real_model):
    return captured(golden, real_model, FAR)


def problem(golden, case, name):
    """Weight, Hessian, plan and what the published code gave."""
    record = golden.cfg("slim_llm")["cases"][case]
    layer = LayerPlan(record["bits"], record["groupsize"], form="slim")
    return golden.weight(name), golden.hessian(name), layer, record["layers"][name]


def check_parity(golden, case, name, inputs):
    weight, hessian, layer, want = problem(golden, case, name)
    stored = solve_slim(weight, hessian, layer, inputs=inputs, published=True)
    reference = golden.load("slim_llm", case, name)
    assert stored.layer.group_bits.tolist() == want["group_bits"] and stored.notes["k"] == want["k"]
    np.testing.assert_allclose(stored.notes["kl"], want["kl_mean"], rtol=1e-4)
    same = torch.isclose(stored.values, reference["dq"], rtol=1e-4, atol=1e-6)
    assert (~same).float().mean() <= 0.01
    assert golden.err(name, stored.values) == pytest.approx(want["err"], rel=1e-3)
    assert stored.notes["relative_error"] == pytest.approx(want["err_rel"], rel=2e-3)
    return stored


@pytest.mark.real
def test_captured_inputs_are_those_of_the_golden_hessians(golden, near_inputs):
    for name, rows in near_inputs.items():
        x = torch.cat(rows)
        ours, theirs = 2 / 16 * x.T @ x, golden.hessian(name)
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.diagonal().max()


@pytest.mark.real
@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("case", CASES)
def test_golden(golden, near_inputs, case, name):
    check_parity(golden, case, name, inputs=near_inputs[name])


@pytest.mark.slow
@pytest.mark.real
def test_golden_of_later_blocks(golden, far_inputs):
    for case in CASES:
        for name in FAR:
            check_parity(golden, case, name, inputs=far_inputs[name])


@pytest.mark.real
@pytest.mark.parametrize("name", NEAR + FAR)
@pytest.mark.parametrize("case", CASES)
def test_given_bits_uniform_bits_and_weighted_range_by_error(golden, case, name):
    weight, hessian, layer, want = problem(golden, case, name)
    extra, shared, saved = golden.extra[f"{case} {name}"], {}, np.array(want["group_bits"])
    ways = {"saved_bits_path": (saved, 1.0), "lambda10": (saved, 10.0),
            "uniform_bits_same_quantizer": (np.full(len(saved), layer.bits), 1.0)}
    for key, (bits, weighted) in ways.items():
        stored = solve_slim(weight, hessian, layer, published=True, group_bits=bits, lambda_salience=weighted,
                            shared=shared)
        assert golden.err(name, stored.values) == pytest.approx(extra[key], rel=1e-3), key


@pytest.mark.real
@pytest.mark.parametrize("case", CASES)
def test_rounding_to_what_is_stored_costs_little(golden, case):
    """At the same bits the corrected form, with 16 instead of 32 bits a scale, loses at most 2 % more."""
    for name in NEAR + FAR:
        weight, hessian, layer, want = problem(golden, case, name)
        stored = solve_slim(weight, hessian, layer, group_bits=np.array(want["group_bits"]))
        assert golden.err(name, stored.values) <= 1.02 * golden.extra[f"{case} {name}"]["saved_bits_path"]
        arrays = packed(stored)
        assert 8 * sum(a.nbytes for a in arrays.values()) == layer_bits(stored.layer, tuple(weight.shape))
        assert torch.equal(unpacked(arrays, stored.layer, tuple(weight.shape)), stored.values)


@pytest.mark.slow
@pytest.mark.real
def test_forced_mixing_is_undone_where_it_hurts(golden, far_inputs):
    """gate_proj at 3 bits: the published search must mix and loses to uniform bits; the corrected one stays uniform."""
    for case in ("slim_b3_g128", "slim_b3_g64"):
        weight, hessian, layer, want = problem(golden, case, FAR[0])
        stored = solve_slim(weight, hessian, layer, inputs=far_inputs[FAR[0]])
        assert stored.notes["k"] == 0 and (stored.layer.group_bits == 3).all()
        assert golden.err(FAR[0], stored.values) < 0.9 * want["err"]


# ---- the search ----------------------------------------------------------------------------------------------------

def random_linear(seed: int, rows: int = 24, cols: int = 96, tokens: int = 200):
    """Weight [rows, cols], inputs (two sequences) and their Hessian."""
    rng = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(rows, cols, generator=rng) * 0.3, torch.randn(tokens, cols, generator=rng)
    x = x @ (torch.eye(cols) + 0.1 * torch.randn(cols, cols, generator=rng))
    return weight, [x[: tokens // 3], x[tokens // 3:]], x.T @ x


def test_salience_by_hand():
    weight, diagonal = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]]), torch.tensor([1.0, 0.5, 2.0])
    assert slim_search.salience(weight, diagonal).tolist() == [[1.0, 16.0, 2.25], [0.0, 4.0, 0.25]]
    found = group_salience(weight, diagonal, 2)
    assert found.dtype == torch.float64 and found.tolist() == [21.0, 2.5]
    assert assign_bits(torch.tensor([3.0, 1.0, 2.0, 9.0, 5.0]), 2, 3).tolist() == [3, 2, 2, 4, 4]
    assert assign_bits(torch.tensor([3.0, 1.0]), 0, 3).tolist() == [3, 3]


@pytest.mark.parametrize("published", (False, True))
@pytest.mark.parametrize("bits", (2, 3))
def test_shared_work_gives_the_divergence_of_each_candidate(bits, published):
    weight, inputs, hessian = random_linear(bits)
    weight[:, 90:] *= 3
    sal = group_salience(weight, factorise(hessian).diagonal, 10)  # 10 groups, the last of 6 columns
    group_bits, notes = search_bits(weight, sal, iter(inputs), bits=bits, group_size=10, published=published)
    assert notes["candidates"] == list(range(1 if published else 0, 5)) and notes["tokens"] == 200
    for k, kl in zip(notes["candidates"], notes["kl"]):
        mixed = assign_bits(sal, k, bits)
        rounded = torch.cat([nearest(weight[:, s], int(b), published) for s, b in zip(slices(96, 10), mixed)], 1)
        total = 0.0
        for x in inputs:
            p, q = ((x @ w.T).softmax(1).clamp(min=1e-6) for w in (weight, rounded))
            total += float(torch.nn.functional.kl_div(p.log(), q, reduction="sum"))
        assert kl == pytest.approx(total / (2 if published else 200), rel=1e-3)
    best = notes["candidates"][int(np.argmin(notes["kl"]))]
    assert notes["k"] == best and group_bits.tolist() == assign_bits(sal, best, bits).tolist()


def test_search_stays_uniform_when_groups_are_alike_and_mixes_when_they_are_not():
    weight, inputs, hessian = random_linear(1, cols=128)
    stored = solve_slim(weight, hessian, LayerPlan(3, 16), inputs=inputs)
    assert stored.notes["k"] == 0 and (stored.layer.group_bits == 3).all() and stored.layer.form == "slim"
    assert solve_slim(weight, hessian, LayerPlan(3, 16), inputs=inputs, published=True).notes["k"] >= 1
    for x in inputs:
        x[:, 32:48] *= 10  # one group carries nearly all of the output
        x[:, 80:96] /= 10
    uneven = sum(x.T @ x for x in inputs)
    stored = solve_slim(weight, uneven, LayerPlan(3, 16), inputs=inputs)
    assert stored.notes["k"] >= 1 and stored.layer.group_bits[2] == 4 and stored.layer.group_bits[5] == 2


def test_only_as_many_tokens_as_asked_are_read():
    weight, inputs, hessian = random_linear(2)
    sal = group_salience(weight, factorise(hessian).diagonal, 12)

    def rows():
        yield from inputs
        raise AssertionError("read on")

    _, notes = search_bits(weight, sal, rows(), bits=3, group_size=12, max_tokens=150)
    _, same = search_bits(weight, sal, [torch.cat(inputs)[:150]], bits=3, group_size=12)
    assert notes["tokens"] == 150 and notes["kl"] == pytest.approx(same["kl"], rel=1e-5)


@pytest.mark.parametrize("cols", (16, 32, 40))
def test_fewer_than_four_groups_are_uniform_and_the_published_code_refuses(cols):
    weight, inputs, hessian = random_linear(3, cols=cols)
    stored = solve_slim(weight, hessian, LayerPlan(2, 16), inputs=inputs)
    assert stored.notes["k"] == 0 and stored.layer.group_bits.tolist() == [2] * -(-cols // 16)
    with pytest.raises(UserError, match="needs 4"):
        solve_slim(weight, hessian, LayerPlan(2, 16), inputs=inputs, published=True)


def test_errors_say_what_is_wrong():
    weight, inputs, hessian = random_linear(4)
    with pytest.raises(UserError, match="2 to 7"):
        solve_slim(weight, hessian, LayerPlan(1, 16), inputs=inputs)
    with pytest.raises(UserError, match="reads the linear's inputs"):
        solve_slim(weight, hessian, LayerPlan(2, 16))
    with pytest.raises(UserError, match="finite inputs"):
        solve_slim(weight, hessian, LayerPlan(2, 16), inputs=[])
    with pytest.raises(UserError, match="finite inputs"):
        solve_slim(weight, hessian, LayerPlan(2, 16), inputs=[inputs[0] * torch.nan])
    with pytest.raises(UserError, match="each of its 6 groups"):
        solve_slim(weight, hessian, LayerPlan(2, 16), group_bits=np.array([2, 2]))


# ---- the solver ----------------------------------------------------------------------------------------------------

def lost(columns, scale, zero) -> torch.Tensor:
    """|ŵ − w|^2.4 of every weight of a group at 2 bits."""
    return ((((columns / scale).round() + zero).clamp(0, 3) - zero) * scale - columns).abs().pow(2.4)


def test_the_range_of_a_group_is_the_best_of_its_factors():
    columns = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    low, high = columns.amin(0), columns.amax(0)
    step, zero = (high - low) / 3, (-low / ((high - low) / 3)).round()
    every = torch.stack([lost(columns, p * step, zero).sum(0) for p in np.linspace(0.9, 1.1, 101)])
    grid = fit(columns, torch.ones(20), 2, published=True)
    torch.testing.assert_close(lost(columns, grid.scale, grid.zero).sum(0), every.amin(0), rtol=1e-3, atol=1e-5)
    assert (every.amin(0) < every[50] * 0.999).any()  # a factor other than 1 is better somewhere


def test_salient_weights_come_out_closer_when_they_weigh_more():
    columns = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    diagonal = torch.ones(64)
    heavy = slim._weights(columns, diagonal, 10.0) > 1
    assert 0 < heavy.float().mean() < 0.15 and columns[heavy].abs().min() >= columns[~heavy].abs().max()
    grids = [fit(columns, diagonal, 2, lambda_salience=weighted) for weighted in (1.0, 10.0)]
    alike, weighted = ((lost(columns, grid.scale, grid.zero) * heavy).sum() for grid in grids)
    assert weighted < alike
    assert (slim._weights(torch.ones(8, 4), torch.ones(8), 10.0) == 1).all()  # nothing lies far out: nothing is salient


def test_one_bit_groups_are_mean_and_mean_distance_with_no_third_value():
    # row 0 = (0, 4, 2, 2): mean 2, mean|w - 2| = 1
    columns = torch.tensor([[0.0, 1.0], [4.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    grid = fit(columns, torch.ones(4), 1)
    assert grid.scale.tolist() == [1.0, 0.0] and grid.zero.tolist() == [2.0, 1.0]
    assert fit(columns, torch.ones(4), 1, published=True).scale.tolist() == [2.0, 1.0]  # mean|w|
    one = np.ones(1, dtype=np.uint8)
    stored = solve_slim(columns.T.contiguous(), torch.eye(4), LayerPlan(2, 4), group_bits=one)
    assert stored.values[0].tolist() == [1.0, 3.0, 3.0, 3.0]
    stored = solve_slim(columns.T.contiguous(), torch.eye(4), LayerPlan(2, 4), group_bits=one, published=True)
    assert stored.values[0].tolist() == [0.0, 4.0, 2.0, 2.0]


def test_leading_low_groups_leak_only_when_published_and_searched():
    assert slim._leaked(np.array([2, 2, 3, 4, 2]), 3) == 2 and slim._leaked(np.array([4, 2, 3]), 3) == 0
    weight, inputs, hessian = random_linear(5, cols=128)
    weight[:, :16] = weight[:, :16].abs() * 0.1  # the least salient group stands first and is one-sided
    leaked = solve_slim(weight, hessian, LayerPlan(3, 16), inputs=inputs, published=True)
    assert leaked.layer.group_bits[0] == 2 and (leaked.parts["zero"][:, 0] == 2).all()
    for published in (False, True):
        given = leaked.layer.group_bits
        stored = solve_slim(weight, hessian, LayerPlan(3, 16), published=published, group_bits=given)
        assert (stored.parts["zero"][:, 0] < 2).any()
        assert stored.notes["relative_error"] < leaked.notes["relative_error"]


def test_a_group_is_fitted_to_the_minimiser_given_the_groups_before_it(monkeypatch):
    """With A = the columns done and B = the rest, H damped: W_B + (W_A − Ŵ_A) H_AB H_BB⁻¹."""
    weight, _, hessian = random_linear(11)
    seen = []
    monkeypatch.setattr(slim, "fit", lambda columns, *a, **k: seen.append(columns.t().clone()) or fit(columns, *a, **k))
    stored = solve_slim(weight, hessian, LayerPlan(2, 40), group_bits=np.array([1, 2, 3]))
    damped = (hessian + stored.notes["damp"] * torch.eye(96)).double()
    for start, end, columns in zip((0, 40, 80), (40, 80, 96), seen):
        lost = (weight - stored.values)[:, :start].double()
        best = weight[:, start:] + lost @ damped[:start, start:] @ torch.linalg.inv(damped[start:, start:])
        torch.testing.assert_close(columns.double(), best[:, : end - start], rtol=1e-3, atol=1e-3)


def test_updates_beat_plain_rounding():
    weight, inputs, hessian = random_linear(6, cols=128)
    stored = solve_slim(weight, hessian, LayerPlan(3, 32), inputs=inputs)
    plain = torch.cat([nearest(weight[:, s], int(b)) for s, b in zip(slices(128, 32), stored.layer.group_bits)], 1)
    assert stored.notes["relative_error"] < 0.9 * relative_error(weight, plain, hessian)
    assert stored.notes["damp"] == pytest.approx(0.01 * float(hessian.diagonal().mean()), rel=1e-5)
    assert stored.notes["tries"] == 1


def test_dead_inputs_do_not_matter():
    weight, inputs, hessian = random_linear(7)
    dead = [0, 17, 95]
    for x in inputs:
        x[:, dead] = 0
    hessian = sum(x.T @ x for x in inputs)
    before = hessian.clone()
    big, none = weight.clone(), weight.clone()
    big[:, dead], none[:, dead] = 1e3, 0
    one, other = (solve_slim(w, hessian, LayerPlan(2, 16), inputs=inputs) for w in (big, none))
    assert torch.equal(one.values, other.values)
    assert one.notes["relative_error"] == pytest.approx(other.notes["relative_error"])
    assert torch.equal(hessian, before) and torch.isfinite(one.values).all()
    plain = solve_slim(big, hessian, LayerPlan(3, 16), group_bits=np.full(6, 3))
    assert (plain.values[:, dead] == 0).all()


def test_rows_of_zeros_and_constant_rows():
    _, _, hessian = random_linear(8)
    weight = torch.zeros(2, 96)
    weight[1] = 0.25
    stored = solve_slim(weight, hessian, LayerPlan(2, 32), group_bits=np.array([1, 2, 3]))
    torch.testing.assert_close(stored.values, weight, rtol=2e-3, atol=1e-3)


# ---- what is stored ------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from((8, 16, 20)), st.sampled_from((2, 3)),
       st.integers(0, 10**6), st.integers(-4, 2))
def test_counted_bits_are_packed_bytes_and_unpack_is_exact(rows, cols, size, bits, seed, power):
    rng = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(rows, cols, generator=rng) * 10.0**power, torch.randn(80, cols, generator=rng)
    mixed = torch.randint(bits - 1, bits + 2, (-(-cols // size),), generator=rng).numpy() if seed % 3 else None
    stored = solve_slim(weight, x.T @ x, LayerPlan(bits, size), inputs=[x], group_bits=mixed)
    arrays = packed(stored)
    assert 8 * sum(a.nbytes for a in arrays.values()) == layer_bits(stored.layer, (rows, cols))
    assert torch.equal(unpacked(arrays, stored.layer, (rows, cols)), stored.values)
    assert torch.equal(decode(stored.parts, stored.layer), stored.values)
    single = np.repeat(stored.layer.group_bits == 1, size)[:cols]
    assert all(torch.equal(stored.parts[k], stored.parts[k].half().float()) for k in ("scale", "zero"))
    assert (stored.parts["codes"][:, single] <= 1).all()


def test_the_published_form_is_counted_at_32_bits_a_scale_and_not_packed():
    weight, inputs, hessian = random_linear(9)
    stored = solve_slim(weight, hessian, LayerPlan(2, 16), inputs=inputs, published=True)
    assert stored.layer.scale_bits == 32 and torch.equal(decode(stored.parts, stored.layer), stored.values)
    with pytest.raises(UserError, match="corrected form"):
        packed(stored)


def test_registered_quantizer_reads_its_options_and_shares_the_factor(monkeypatch):
    spec = QUANTIZERS.get("slim")
    assert spec.needs == ("hessian", "inputs") and not spec.sequential
    weight, inputs, hessian = random_linear(10)
    calls = []
    monkeypatch.setattr(slim, "factorise", lambda *a: calls.append(a) or factorise(*a))
    shared = {}
    options = {"lambda_salience": 5.0, "percdamp": 0.1, "published": False}
    aid = Aid("a.q_proj", hessian=hessian, shared=shared, replay=lambda: iter(inputs), options=options)
    first, second = (spec.fn(weight, LayerPlan(2, 16), aid) for _ in range(2))
    assert len(calls) == 1 and torch.equal(first.values, second.values)
    want = solve_slim(weight, hessian, LayerPlan(2, 16), inputs=inputs, lambda_salience=5.0, percdamp=0.1)
    assert torch.equal(first.values, want.values)
    given_bits = np.array([1, 2, 2, 2, 2, 3], dtype=np.uint8)
    fixed = spec.fn(weight, LayerPlan(2, 16, group_bits=given_bits), Aid("a.q_proj", hessian))
    assert fixed.layer.group_bits.tolist() == given_bits.tolist()
    assert json.dumps(fixed.notes) and json.dumps(first.notes)
