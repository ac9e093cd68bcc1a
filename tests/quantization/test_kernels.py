"""The Triton kernel of the column loop against the loop in PyTorch; in Triton's interpreter where there is no GPU."""

import math
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from core.storage import LOG_BITS, STORED_SCALES
from core.types import LayerPlan
from quantization.bits import stored_grid
from quantization.kernels import columns as fused
from quantization.solvers.gptq import Solver, solve
from quantization.solvers.grid import Grid, spread_groups
from quantization.solvers.kept import Float8, through
from quantization.solvers.slim import solve_slim
from quantization.solvers.spqr import solve_spqr
from streams.hessians import factorise, relative_error

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(find_spec("triton") is None,
                                                  reason="needs Triton, which requirements-dev.txt has for Linux")]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
OUT, IN = 20, 150


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    if not GPU:  # tests/conftest.py asks for the interpreter, before anything imports Triton
        monkeypatch.setenv(fused.SWITCH, "interpret")
        monkeypatch.setattr(fused, "ROWS", 32)  # one program: half the time


def linear(related: bool, seed=0):
    """A weight and a Hessian; unrelated inputs pass no error on."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * IN, IN, generator=generator)
    inputs = inputs @ torch.randn(IN, IN, generator=generator) + 2 * inputs
    inputs[:, 7] = 0
    hessian = 2 * inputs.T @ inputs / 4
    weight = torch.randn(OUT, IN, generator=generator)
    return weight.to(DEVICE), (hessian if related else hessian.diagonal().diag()).to(DEVICE)


def both(monkeypatch, run):
    """What ``run`` gives with the kernel and without, and that the kernel did run."""
    calls = []
    plain = fused.quantize_group
    for module in ("gptq", "slim", "spqr_fit"):
        monkeypatch.setattr(f"quantization.solvers.{module}.quantize_group",
                            lambda *args, **kwargs: (calls.append(1), plain(*args, **kwargs)))
    ours = run()
    assert calls
    count = len(calls)
    with monkeypatch.context() as patch:
        patch.setenv(fused.SWITCH, "0")
        theirs = run()
    assert len(calls) == count
    return ours, theirs


def agree(monkeypatch, run):
    """``run`` of (weight, Hessian) gives the same bits where no error is passed on.

    Where errors are, a last bit that tips a code changes all later ones, so only the loss can be compared.
    """
    ours, theirs = both(monkeypatch, lambda: run(*linear(related=False)))
    assert torch.equal(ours.parts["codes"], theirs.parts["codes"])
    assert torch.equal(ours.values, theirs.values)
    assert set(ours.parts) == set(theirs.parts)
    weight, hessian = linear(related=True)
    ours, theirs = both(monkeypatch, lambda: run(weight, hessian))
    lost = [relative_error(weight, stored.values, hessian) for stored in (ours, theirs)]
    assert math.isclose(*lost, rel_tol=0.05), lost


KEEP = torch.rand(OUT, IN, generator=torch.Generator().manual_seed(3)).numpy() < 0.02
LAYERS = {
    "groups": LayerPlan(2, 32), "over a block": LayerPlan(4, 144), "rows": LayerPlan(8, IN), "ragged": LayerPlan(3, 7),
    "kept": LayerPlan(2, 48, keep=KEEP), "rows, kept": LayerPlan(3, IN, keep=KEEP),
    "kept in 8 bits": replace(stored_grid(2, 48, LOG_BITS), keep=KEEP, kept_bits=8),
    "table": replace(stored_grid(2, 48, **STORED_SCALES["table"]), keep=KEEP, kept_bits=8)}
SOLVERS = {
    "plain": Solver(), "symmetric": Solver(symmetric=True), "ordered": Solver(act_order=True),
    "static": Solver(act_order=True, static_groups=True), "published": Solver(stored=False, stale=True),
    "fp16": Solver(kept_dtype=torch.float16)}


CASES = [*((layer, "plain") for layer in LAYERS), *(("kept", how) for how in SOLVERS if how != "plain"),
         ("ragged", "static"), ("kept in 8 bits", "static"), ("table", "static"), ("table", "ordered")]


@pytest.mark.parametrize("layer, how", CASES)
def test_gptq_by_the_kernel(layer, how, monkeypatch):
    agree(monkeypatch, lambda weight, hessian: solve(weight.clone(), hessian, LAYERS[layer], SOLVERS[how]))


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("size", [32, 160])
def test_slim_by_the_kernel(size, published, monkeypatch):
    bits = [1, 2, 3, 2, 2, 2, 2][:-(-IN // size)]
    agree(monkeypatch, lambda weight, hessian: solve_slim(weight, hessian, LayerPlan(2, size), group_bits=bits,
                                                          published=published))


@pytest.mark.parametrize("threshold", [0.2, math.inf])
@pytest.mark.parametrize("published", [False, True])
def test_spqr_by_the_kernel(published, threshold, monkeypatch):
    layer = LayerPlan(3, 16, scale_bits=3, zero_bits=3, form="bilevel")
    agree(monkeypatch, lambda weight, hessian: solve_spqr(weight, hessian, layer, threshold=threshold,
                                                          published=published))


@pytest.mark.parametrize("layer", ["groups", "over a block", "rows", "kept"])
def test_what_the_kernel_passes_on(layer):
    """Every weight, with what the columns before it have passed on in float64, took the nearest point of its grid."""
    weight, hessian = linear(related=True)
    layer = LAYERS[layer]
    stored = solve(weight.clone(), hessian, layer)
    factor, values = factorise(hessian), stored.values.double()
    upper, current = factor.upper.double(), weight.double().masked_fill(factor.dead, 0.0)
    for j in range(IN):
        error = (current[:, j] - values[:, j]) / upper[j, j]
        current[:, j + 1:] -= error[:, None] * upper[j, j + 1:]
    keep = torch.zeros(OUT, IN, dtype=torch.bool) if layer.keep is None else torch.as_tensor(layer.keep)
    keep = keep.to(DEVICE)
    scale, zero = (spread_groups(stored.parts[name], layer.group_size, IN).double() for name in ("scale", "zero"))
    points = (torch.arange(2**layer.bits, device=DEVICE)[:, None, None] - zero) * scale
    nearest = (points - current).abs().amin(0)
    slack = 1e-4 * (scale + current.abs())
    assert ((current - values).abs() <= nearest + slack)[~keep].all()
    torch.testing.assert_close(values[keep], current[keep], rtol=2**-8, atol=1e-6)


def test_a_wide_group_of_spqr_runs_in_pytorch(monkeypatch):
    weight, hessian = linear(related=True)
    layer = LayerPlan(3, 144, scale_bits=3, zero_bits=3, form="bilevel")
    monkeypatch.setattr("quantization.solvers.spqr_fit.quantize_group", None)
    solve_spqr(weight, hessian, layer)


def test_a_kernel_that_does_not_run_is_not_taken(monkeypatch, caplog):
    def broken(*_args, **_named):
        raise RuntimeError("Failed to find C compiler")

    device = torch.device("meta")  # not asked before
    monkeypatch.delenv(fused.SWITCH, raising=False)
    monkeypatch.setattr(fused, "quantize_group", broken)
    assert not fused.seen_running(device)
    assert "Failed to find C compiler" in caplog.text
    assert not fused.runs_fused(torch.device("cpu"))


def test_kept_weights_round_as_they_are_stored():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(64, 16, generator=generator) * torch.logspace(-6, 2, 64)[:, None]
    values = torch.cat([values, torch.tensor([[0.0, -0.0, 1e-30, 1e4] * 4])]).to(DEVICE)
    float8 = Float8.over(3.0)
    rounded = {dtype: through(values, dtype) for dtype in (torch.bfloat16, torch.float16)}
    for stored, want in (rounded | {float8: float8.through(values)}).items():
        columns = values.clone()
        width, rows = columns.shape
        fused.quantize_group(columns, torch.eye(width, device=DEVICE), torch.ones(width, device=DEVICE),
                             Grid(torch.ones(rows, device=DEVICE), torch.zeros(rows, device=DEVICE), 3),
                             torch.zeros(width, rows, dtype=torch.uint8, device=DEVICE),
                             torch.zeros(width, rows, device=DEVICE), block=slice(0, width), group=slice(0, width),
                             keep=torch.ones(width, rows, dtype=torch.bool, device=DEVICE), stored=stored)
        assert torch.equal(columns, want), stored
