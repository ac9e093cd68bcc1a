"""Codes that stand for the values of a table: what is fitted is the best, what is stored gives it back."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.storage import STORED_SCALES
from core.types import LayerPlan
from quantization.bits import layer_bits, stored_grid
from quantization.packing.decode import decoded
from quantization.packing.forms import packed, unpacked
from quantization.solvers.gptq import Solver, solve
from quantization.solvers.grid import LogScale, grouped
from quantization.solvers.table import Table, TableGrid, fit_table
from tests.quantization.test_gptq import layer_error, random_case

VALUES = torch.tensor([-1.0, -0.25, 0.125, 0.75])


def table_plan(bits: int, group: int, keep=None) -> LayerPlan:
    return replace(stored_grid(bits, group, **STORED_SCALES["table"]), keep=keep)


def test_codes_are_the_nearest_points_and_half_way_takes_the_lower():
    scale = torch.tensor([2.0, 0.5])
    grid = TableGrid(scale, torch.zeros(2), 3, table=VALUES)
    weight = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    nearest = ((VALUES[:, None, None] * scale - weight).abs()).argmin(0)
    assert torch.equal(grid.codes(weight), nearest.float())
    assert torch.equal(grid.values_(grid.codes(weight)), VALUES[nearest] * scale)
    assert grid.codes(torch.tensor([2 * -0.625, 0.5 * 0.4375])).tolist() == [0.0, 2.0]


def test_weights_on_a_table_are_found_again():
    """Rows of scale · table with every value in each group: the fit is exact, up to what a table's own size may be."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randperm(16, generator=generator) % 4 for _ in range(24)])
    scale = 2.0 ** (torch.randint(-8, 8, (24, 1), generator=generator) / 8)
    weight = (VALUES[codes] * scale).repeat(1, 2)
    table = fit_table(weight, table_plan(2, 16))
    grid = table.fitted(weight.view(24, 2, 16), None, torch.ones(16))
    values = grid.values_(grid.codes(weight.view(24, 2, 16))).view_as(weight)
    torch.testing.assert_close(values, weight, rtol=2e-3, atol=0)
    torch.testing.assert_close(table.values / table.values.abs().max(), VALUES, rtol=2e-3, atol=0)


def test_a_groups_scale_is_the_best_of_its_steps():
    """Against all steps of one group by hand, what is kept left out and columns weighed."""
    generator = torch.Generator().manual_seed(1)
    group, importance = torch.randn(5, 12, generator=generator), torch.rand(12, generator=generator)
    free = torch.rand(5, 12, generator=generator) > 0.2
    table = Table(VALUES, LogScale(4), importance)
    grid = table.fitted(group, free, importance)
    largest = (group * free).abs().amax(1, keepdim=True)
    every = [table.logs.values(table.logs.codes(largest) - step) for step in range(-1, 7)]  # of all that are tried
    errors = [(((VALUES[:, None, None] * s - group).abs().amin(0) ** 2) * importance * free).sum(1) for s in every]
    best = torch.stack(errors).argmin(0)
    assert torch.equal(grid.scale[:, 0], torch.stack(every)[best, torch.arange(5), 0])
    of_group = table.of_group(group.t(), ~free.t(), importance)
    assert torch.equal(of_group.scale, grid.scale[:, 0])


def test_columns_that_are_read_more_are_met_better():
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(2))
    importance = torch.ones(48)
    importance[:6] = 1000.0
    errors = []
    for h in (None, importance):
        table = fit_table(weight, table_plan(2, 24), h)
        grid = table.fitted(weight.view(64, 2, 24), None, table.importance.view(2, 24))
        errors.append((grid.values_(grid.codes(weight.view(64, 2, 24))).view(64, 48) - weight)[:, :6].square().mean())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("how", [Solver(), Solver(act_order=True, static_groups=True, discount=0.2)])
def test_the_solver_loses_less_on_a_table_than_on_equal_steps(how):
    """No zero points, yet less error, in groups of 64; ten linears of normal weights."""
    lost = {"log": 0.0, "table": 0.0}
    for seed, form in itertools.product(range(10), lost):
        weight, hessian = random_case(48, 64, seed)
        stored = solve(weight, hessian, stored_grid(3, 64, **STORED_SCALES[form]), how=how)
        lost[form] += layer_error(weight, stored.values, hessian) / layer_error(weight, 0 * weight, hessian)
    assert lost["table"] < 0.97 * lost["log"], lost


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_packed_as_counted_and_decoded_by_both_ways(share):
    weight, hessian = random_case(20, 48)
    keep = np.random.default_rng(0).random(weight.shape) < share
    layer = replace(table_plan(3, 16, keep if share else None), kept_bits=8)
    stored = solve(weight, hessian, layer, how=Solver(act_order=True, static_groups=True))
    arrays = packed(stored)
    assert 8 * sum(array.nbytes for array in arrays.values()) == layer_bits(stored.layer, (20, 48))
    assert torch.equal(unpacked(arrays, stored.layer, (20, 48)), stored.values)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    assert torch.equal(decoded(tensors, stored.layer, (20, 48), dtype=torch.float32, kept_dtype=torch.bfloat16),
                       stored.values)


def test_a_large_linear_is_met_in_parts_with_the_same_scales(monkeypatch):
    weight = torch.randn(50, 48, generator=torch.Generator().manual_seed(0)).view(50, 3, 16)
    free, table = weight > -1, fit_table(weight.view(50, 48), table_plan(2, 16))
    whole = [table.fitted(weight, mask, torch.ones(1, 3, 16)).scale for mask in (None, free)]
    monkeypatch.setattr("quantization.solvers.table.TOGETHER", (7 * 48, 7 * 48))
    parts = [table.fitted(weight, mask, torch.ones(1, 3, 16)).scale for mask in (None, free)]
    assert all(torch.equal(*pair) for pair in zip(whole, parts))


def test_zeros_stay_zeros_and_a_lone_weight_survives():
    """Rows and groups of zeros in an ordinary linear, too."""
    weight, hessian = random_case(24, 32)
    weight[5] = 0
    weight[7, :16] = 0
    weight[8] *= 1e-4  # under the finest scale
    stored = solve(weight, hessian, table_plan(2, 16), how=Solver(act_order=True, static_groups=True))
    arrays = packed(stored)
    assert torch.equal(unpacked(arrays, stored.layer, (24, 32)), stored.values)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    assert torch.equal(decoded(tensors, stored.layer, (24, 32), dtype=torch.float32, kept_dtype=torch.bfloat16),
                       stored.values)
    assert (stored.values[5] == 0).all() and (stored.values[7, :16] == 0).all() and (stored.values[7, 16:] != 0).all()
    assert stored.values[8].abs().max() < 2.0**-7 * weight.abs().max()
    alone = torch.zeros(8, 32)
    alone[0, 3] = 1e-3
    values = solve(alone, random_case(8, 32)[1], table_plan(2, 16), how=Solver()).values
    assert (values[1:] == 0).all() and float(values[0, 3]) == pytest.approx(1e-3, rel=0.05)


def test_inputs_that_calibration_never_saw_keep_rounded_weights():
    """A table need not have a 0, so their weights are rounded as they are, which is better than one constant."""
    weight, hessian = random_case(48, 64)
    hessian[[3, 40]] = 0
    hessian[:, [3, 40]] = 0
    values = solve(weight, hessian, table_plan(3, 32), how=Solver(act_order=True, static_groups=True)).values
    dead = (values - weight)[:, [3, 40]]
    assert dead.square().mean() < 0.2 * weight[:, [3, 40]].square().mean()
    assert abs(float(values[:, 3].mean() - weight[:, 3].mean())) < 0.1


def heavy_case(heavy: float):
    """A linear of which two inputs hold most of the Hessian's diagonal; inputs are unrelated."""
    weight, _ = random_case(96, 96)
    weight[:, [5, 70]] *= 0.3
    diagonal = torch.ones(96)
    diagonal[[5, 70]] = heavy
    return weight, diagonal.diag()


@pytest.mark.parametrize("how", [Solver(), Solver(act_order=True), Solver(act_order=True, static_groups=True)])
def test_the_solver_fits_tables_to_what_is_read(how):
    """Columns of which the Hessian says much are met better than where it says the same of all."""
    (weight, even), (_, skewed) = heavy_case(1.0), heavy_case(1e4)
    errors = [(solve(weight, hessian, table_plan(3, 48), how=how).values - weight)[:, [5, 70]].square().mean()
              for hessian in (even, skewed)]
    assert errors[1] < 0.5 * errors[0], errors


def test_every_row_counts_where_few_columns_hold_most_of_the_weight():
    """A table fitted to some rows would follow the few numbers that it saw of the heavy columns."""
    generator = torch.Generator().manual_seed(0)
    weight, h = torch.randn(4096, 64, generator=generator), torch.ones(64)
    h[9] = 1e5
    table = fit_table(weight, table_plan(3, 64), h)
    grid = table.fitted(grouped(weight, 64), None, grouped(h[None], 64))
    error = (grid.values_(grid.codes(grouped(weight, 64))).flatten(1) - weight).square()
    assert error[:, 9].mean() < 0.02 * weight[:, 9].square().mean()


def test_kept_weights_pull_no_table():
    weight, _ = random_case(24, 48)
    keep = np.random.default_rng(0).random(weight.shape) < 0.05
    kept = torch.as_tensor(keep)
    plain, large = (fit_table(torch.where(kept, value, weight), table_plan(2, 16, keep)).values
                    for value in (weight, torch.tensor(100.0)))
    assert torch.equal(plain, large)


def test_a_broken_hessian_is_named_as_such():
    weight, hessian = random_case(8, 32)
    hessian[3, 3] = torch.nan
    with pytest.raises(UserError, match="inputs of a linear are not finite"):
        solve(weight, hessian, table_plan(2, 16))


def test_groups_with_bits_of_their_own_have_no_common_table():
    layer = replace(table_plan(2, 16), group_bits=np.array([2, 3], np.uint8))
    with pytest.raises(UserError, match="leave scales=table out"):
        fit_table(torch.randn(4, 32), layer)


def test_weights_that_are_not_finite_are_named_as_such():
    for broken in (torch.inf, torch.nan):
        weight = torch.randn(4, 32)
        weight[1, 3] = broken
        with pytest.raises(UserError, match="NaN or infinity; the model is broken"):
            fit_table(weight, table_plan(2, 16))
