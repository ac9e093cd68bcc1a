"""SqueezeLLM's quantizer: clusters against scikit-learn and exhaustive search, packed bytes against the accountant."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.codebook import inertia, made_up
from core.errors import BudgetError, UserError
from core.registry import QUANTIZERS
from core.types import Aid, LayerPlan
from quantization.bits import layer_bits
from quantization.packing.forms import packed, unpacked
from quantization.solvers import kmeans
from quantization.solvers.codebook import kept_mask, solve_codebook
from quantization.solvers.kmeans import nearest, weighted_kmeans
from quantization.solvers.rtn import dequantized


def book(bits: int, cols: int) -> LayerPlan:
    return LayerPlan(bits, cols, form="codebook")


def reached(values, weights, centers) -> np.ndarray:
    """Inertia of each row, float64."""
    rows = zip(*(t.double().numpy() for t in (values, weights, centers)))
    return np.array([inertia(*row) for row in rows])


def rows_of(kind: str, rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and weights of several temperaments."""
    values, weights = made_up((rows, cols), seed=7)
    if kind == "even":
        weights = torch.ones_like(weights)
    if kind == "spiky":  # a handful of weights decide everything
        weights = weights.pow(3)
    if kind == "sparse":
        weights = weights * (torch.rand(weights.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    return values, weights / weights.amax(1, keepdim=True)


@pytest.mark.parametrize("kind", ("fisher", "even", "spiky", "sparse"))
@pytest.mark.parametrize("levels", (4, 8, 16))
def test_no_worse_than_ten_restarts_of_scikit_learn(levels, kind):
    from sklearn.cluster import KMeans

    values, weights = rows_of(kind, 24, 576)
    ours = reached(values, weights, weighted_kmeans(values, weights, levels))
    fits = [KMeans(levels, n_init=10, random_state=0).fit(v[:, None], sample_weight=w).cluster_centers_.ravel()
            for v, w in zip(values.double().numpy(), weights.double().numpy())]
    ratio = ours / reached(values, weights, torch.tensor(np.array(fits)))
    assert (ratio <= 1.01).all() and ratio.mean() <= 1.0, ratio


@pytest.mark.parametrize("kind", ("fisher", "even", "spiky", "sparse"))
@pytest.mark.parametrize("levels", (4, 16))
def test_within_one_percent_of_the_optimum(levels, kind, monkeypatch):
    """The optimum: every position of the row may end an interval."""
    values, weights = rows_of(kind, 12, 576)
    ours = reached(values, weights, weighted_kmeans(values, weights, levels))
    monkeypatch.setattr(kmeans, "_candidates", lambda x, *_, offset: torch.arange(x.shape[1] + 1).repeat(len(x), 1))
    best = reached(values, weights, weighted_kmeans(values, weights, levels))
    assert (ours <= 1.01 * best).all() and (best <= ours * (1 + 1e-6)).all(), ours / best


def best_by_search(values: np.ndarray, weights: np.ndarray, levels: int) -> float:
    """Inertia of the best split of the sorted values into ``levels`` intervals, all of them tried."""
    order = np.argsort(values)
    x, w = values[order], weights[order]
    least = np.inf
    for cuts in combinations(range(1, len(x)), levels - 1):
        total = 0.0
        for part, mass in zip(np.split(x, cuts), np.split(w, cuts)):
            total += (mass * (part - (mass * part).sum() / mass.sum()) ** 2).sum() if mass.sum() else 0.0
        least = min(least, total)
    return least


@pytest.mark.parametrize("levels", (1, 2, 3, 4))
def test_short_rows_are_solved_exactly(levels):
    rng = np.random.default_rng(levels)
    values = torch.tensor(rng.normal(size=(30, 11)), dtype=torch.float32)
    weights = torch.tensor(rng.exponential(size=(30, 11)) ** 4 * (rng.random((30, 11)) < 0.9), dtype=torch.float32)
    ours = reached(values, weights, weighted_kmeans(values, weights, levels))
    best = [best_by_search(v, w, levels) for v, w in zip(values.double().numpy(), weights.double().numpy())]
    np.testing.assert_allclose(ours, best, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("levels", (4, 16, 256))
@pytest.mark.parametrize("cols", (64, 700))
def test_rows_with_few_values_lose_nothing(levels, cols):
    """Values with gaps from 1e-2 to 1e2 and very uneven counts: none may be merged with its neighbour."""
    rng = np.random.default_rng(cols + levels)
    steps = 10.0 ** rng.uniform(-2, 2, (6, levels))
    table = np.cumsum(steps, 1).astype(np.float32)
    pick = np.minimum(rng.geometric(0.2, (6, cols)) - 1, min(levels, cols) - 1)
    pick[:, : min(levels, cols)] = np.arange(min(levels, cols))  # every value at least once
    values = torch.tensor(np.take_along_axis(table, pick, 1))
    centers = weighted_kmeans(values, torch.ones_like(values), levels)
    codes = nearest(values, centers)
    assert torch.equal(centers.gather(1, codes.long()), values)


def test_two_valued_rows_give_the_two_values():
    values = torch.where(torch.arange(600)[None] < torch.tensor([[1], [300], [599]]), -0.25, 3.0)
    weights = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) + 1e-3
    centers = weighted_kmeans(values, weights, 2)
    codes = nearest(values, centers)
    assert centers.tolist() == [[-0.25, 3.0]] * 3 and torch.equal(codes, (values > 0).to(torch.uint8))


def test_closed_form_of_one_and_two_clusters():
    values, weights = torch.tensor([[0.0, 1.0, 10.0, 14.0]]), torch.tensor([[3.0, 1.0, 1.0, 3.0]])
    assert weighted_kmeans(values, weights, 1).item() == (1 + 10 + 42) / 8
    centers = weighted_kmeans(values, weights, 2)
    codes = nearest(values, centers)
    assert centers.tolist() == [[0.25, 13.0]] and codes.tolist() == [[0, 0, 1, 1]]


def test_centers_ascend_codes_are_nearest_and_nothing_is_random():
    values, weights = rows_of("fisher", 40, 576)
    before = values.clone(), weights.clone()
    centers = weighted_kmeans(values, weights, 8)
    codes = nearest(values, centers)
    assert centers.dtype == torch.float32 and codes.dtype == torch.uint8 and (centers.diff(dim=1) >= 0).all()
    away = (values.double()[..., None] - centers.double()[:, None]).abs()
    assert torch.equal(away.gather(2, codes.long()[..., None]).squeeze(2), away.amin(2))
    again = weighted_kmeans(values, weights, 8)
    alone = weighted_kmeans(values[17:18], weights[17:18], 8)
    assert torch.equal(again, centers) and torch.equal(alone[0], centers[17])  # no row depends on its neighbours
    assert torch.equal(before[0], values) and torch.equal(before[1], weights)


@pytest.mark.parametrize("cols", (20, 300))
def test_nothing_of_a_clustering_leaves_its_device(cols, monkeypatch):
    """Tensors without memory refuse to be put together with those of another device, as a GPU's do."""
    monkeypatch.setattr(kmeans.torch, "equal", lambda *_: True)
    values, weights = torch.empty(2, 30, cols, device="meta")
    centers = kmeans._cluster(values, weights, 4, iterations=2, seed=0)
    assert (centers.device.type, centers.shape) == ("meta", (30, 4))
    assert nearest(values, centers).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("levels", (4, 8, 16))
def test_a_gpu_clusters_as_well_and_the_same_each_time(levels):
    values, weights = rows_of("fisher", 64, 576)
    here = weighted_kmeans(values, weights, levels)
    there, again = (weighted_kmeans(values.cuda(), weights.cuda(), levels).cpu() for _ in range(2))
    assert torch.equal(there, again)
    np.testing.assert_allclose(reached(values, weights, there), reached(values, weights, here), rtol=1e-3)


def test_weights_matter_only_relative_to_each_other():
    values, weights = rows_of("fisher", 6, 300)
    centers = weighted_kmeans(values, weights, 8)
    for factor in (2.0**-60, 2.0**60):
        assert torch.equal(weighted_kmeans(values, weights * factor, 8), centers)
    doubled = torch.cat([values, values], 1), torch.cat([weights, weights], 1) / 2
    again = weighted_kmeans(*doubled, 8)
    np.testing.assert_allclose(reached(values, weights, again), reached(values, weights, centers), rtol=1e-2)


def test_no_weight_means_even_weight_and_tiny_weights_do_no_harm():
    values, weights = rows_of("fisher", 4, 200)
    weights[2] = 0
    even = weighted_kmeans(values, torch.ones_like(values), 4)
    centers = weighted_kmeans(values, weights, 4)
    assert torch.equal(centers[2], even[2]) and not torch.equal(centers[1], even[1])
    weights[:, 0] = 1e18  # cumulative sums lose every digit of the others
    centers = weighted_kmeans(values, weights, 4)
    assert (centers >= values.amin(1, keepdim=True)).all() and (centers <= values.amax(1, keepdim=True)).all()
    assert ((centers - values[:, :1]).abs().amin(1) < 1e-6).all()


@st.composite
def linears(draw):
    """A weight, a Fisher information and settings."""
    rows, cols, bits = draw(st.integers(1, 12)), draw(st.integers(1, 150)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    weight = torch.tensor(rng.normal(size=(rows, cols)) * 10.0 ** draw(st.integers(-3, 2)), dtype=torch.float32)
    fisher = torch.tensor(rng.exponential(size=(rows, cols)) ** 3 * (rng.random((rows, 1)) < 0.8), dtype=torch.float32)
    return weight, fisher, bits, draw(st.sampled_from((0.0, 0.0045, 0.3))), draw(st.sampled_from((0.0, 0.0005, 0.1)))


@settings(max_examples=100, deadline=None)
@given(linears())
def test_counted_bits_are_packed_bytes_and_unpack_is_exact(case):
    weight, fisher, bits, magnitude, sensitive = case
    plan = book(bits, weight.shape[1])
    stored = solve_codebook(weight, fisher, plan, magnitude_share=magnitude, fisher_share=sensitive)
    arrays = packed(stored)
    assert all(a.dtype == np.uint8 for a in arrays.values())
    assert 8 * sum(a.nbytes for a in arrays.values()) == layer_bits(stored.layer, tuple(weight.shape))
    assert torch.equal(unpacked(arrays, replace(stored.layer, keep=None), tuple(weight.shape)), stored.values)
    if not magnitude and not sensitive:
        assert stored.layer.keep is None and all(len(row.unique()) <= 2**bits for row in stored.values)


def test_what_is_kept_and_that_it_does_not_pull_the_centers():
    weight, fisher = made_up((64, 576))
    stored = solve_codebook(weight, fisher, book(3, 576))
    keep, size = torch.tensor(stored.layer.keep), weight.numel()
    by_size = kept_mask(weight, fisher, 0.0045, fisher_share=0.0)
    assert by_size.sum() == round(0.0045 * size) and keep.sum() == round(0.0045 * size) + round(0.0005 * size)
    assert weight[torch.tensor(by_size)].abs().min() >= weight[~torch.tensor(by_size)].abs().max()
    sensitive = keep & ~torch.tensor(by_size)
    assert fisher[sensitive].min() >= fisher[~keep].max()
    assert torch.equal(stored.values[keep], weight[keep].bfloat16().float())
    assert stored.notes["kept_share"] == float(keep.double().mean())
    moved = torch.where(keep, weight * 3, weight)
    assert torch.equal(solve_codebook(moved, fisher, book(3, 576)).parts["centers"], stored.parts["centers"])
    assert torch.equal(stored.parts["centers"].float().half(), stored.parts["centers"])
    centers = stored.parts["centers"].float()
    assert torch.equal(nearest(weight, centers), stored.parts["codes"])  # nearest to what is stored


def test_notes_tell_the_weighted_error_and_blind_rows():
    weight, fisher = made_up((16, 200))
    fisher[3] = 0
    stored = solve_codebook(weight, fisher, book(2, 200))
    lost, whole = ((fisher.double() * t.double() ** 2).sum() for t in (weight - stored.values, weight))
    assert stored.notes["relative_fisher_error"] == pytest.approx(float(lost / whole), rel=1e-6)
    assert stored.notes["rows_without_fisher"] == 1
    dead = solve_codebook(weight, torch.zeros_like(weight), book(2, 200))
    assert dead.notes["relative_fisher_error"] is None and dead.notes["rows_without_fisher"] == 16
    ones = solve_codebook(weight, torch.ones_like(weight), book(2, 200), fisher_share=0.0)
    assert torch.equal(dead.values, ones.values)  # no Fisher: nothing is kept for it, and every weight counts alike


def test_the_weighted_error_is_far_below_round_to_nearest_and_falls_with_bits():
    weight, fisher = made_up((32, 576))
    errors = [solve_codebook(weight, fisher, book(bits, 576)).notes["relative_fisher_error"] for bits in (2, 3, 4)]
    rtn = float((fisher * (weight - dequantized(weight, LayerPlan(2, 64))) ** 2).sum() / (fisher * weight**2).sum())
    assert errors[0] < rtn / 4 and errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2


def test_the_registered_quantizer():
    spec = QUANTIZERS.get("squeezellm")
    assert spec.needs == ("fisher",) and set(spec.options) == {"magnitude_share", "fisher_share", "target"}
    weight, fisher = made_up((16, 200))
    options = {"magnitude_share": 0.1, "fisher_share": 0.0, "published": False}
    stored = spec.fn(weight, book(2, 200), Aid("a", fisher=fisher, options=options))
    assert stored.layer.keep.sum() == 320
    with pytest.raises(UserError, match=r"no Fisher information for a\.b"):
        spec.fn(weight, book(2, 200), Aid("a.b"))
    with pytest.raises(UserError, match=r"a\.b: .*form 'grid' at 2 bits"):
        spec.fn(weight, LayerPlan(2, 200), Aid("a.b", fisher=fisher))


@pytest.mark.parametrize("broken", (torch.nan, torch.inf, -1.0))
def test_broken_fisher_is_refused(broken):
    weight, fisher = made_up((4, 50))
    fisher[2, 7] = broken
    with pytest.raises(UserError, match=r"Fisher information holds NaN, infinity or negative numbers"):
        solve_codebook(weight, fisher, book(2, 50))


def test_other_broken_input_is_refused():
    weight, fisher = made_up((4, 50))
    with pytest.raises(UserError, match="weights to cluster hold NaN"):
        solve_codebook(weight * torch.nan, fisher, book(2, 50))
    with pytest.raises(UserError, match="exceeds 65504"):
        solve_codebook(weight * 1e8, fisher, book(2, 50))
    with pytest.raises(UserError, match=r"magnitude_share = 0\.9 is not a share"):
        solve_codebook(weight, fisher, book(2, 50), magnitude_share=0.9)
    with pytest.raises(UserError, match="codebook of 1 to 8 bits, the plan says form 'codebook' at 16 bits"):
        solve_codebook(weight, fisher, book(16, 50))
    with pytest.raises(ValueError, match="300 levels"):
        weighted_kmeans(weight, fisher, 300)
    with pytest.raises(ValueError, match=r"one shape .*\(4, 50\) and \(4, 49\)"):
        weighted_kmeans(weight, fisher[:, 1:], 4)


@pytest.mark.real
def test_a_linear_of_the_real_model(real_model):
    from safetensors import safe_open

    with safe_open(real_model / "model.safetensors", "pt") as weights:
        weight = weights.get_tensor("model.layers.5.mlp.down_proj.weight").float()
    stored = solve_codebook(weight, made_up(tuple(weight.shape))[1], book(2, 1536))
    arrays = packed(stored)
    bits = 8 * sum(a.nbytes for a in arrays.values()) / weight.numel()
    assert bits == layer_bits(stored.layer, tuple(weight.shape)) / weight.numel()
    assert 0.005 * 16 < bits - 2 - 64 / 1536 < 0.005 * 30  # the index costs less than 14 bits a kept weight
    assert torch.equal(stored.values[torch.tensor(stored.layer.keep)], weight[torch.tensor(stored.layer.keep)])


@pytest.mark.parametrize("target", (2.5, 3.0, 4.7))
def test_a_target_is_filled_with_kept_weights_of_both_kinds(target):
    weight, fisher = rows_of("normal", 48, 256)
    stored = QUANTIZERS.get("squeezellm").fn(weight, book(2, 256), Aid("w", fisher=fisher, options={"target": target}))
    bits = layer_bits(stored.layer, (48, 256)) / weight.numel()
    assert target - (32 + 8 + 48) / weight.numel() <= bits <= target  # a wider row count is 48 bits
    plain = solve_codebook(weight, fisher, book(2, 256))
    assert stored.layer.keep.sum() > plain.layer.keep.sum()
    assert bool(stored.layer.keep.flat[int(weight.abs().argmax())])
    with pytest.raises(BudgetError, match="more than the target"):
        solve_codebook(weight, fisher, book(2, 256), target=2.2)
