"""Hadamard matrices by construction, and rotations factor by factor."""

import numpy as np
import pytest
import torch

from core.errors import UserError
from quantization.transforms.hadamard import paley, rotation

WIDTHS = (1, 2, 4, 8, 12, 64, 80, 96, 576, 896, 1152, 1536, 2304)


@pytest.mark.parametrize("order", [4, 8, 12, 20, 24, 28, 36, 44, 60, 76, 108, 140, 148])
def test_paleys_matrices_are_hadamards(order):
    h = paley(order).astype(np.int64)
    assert set(np.unique(h)) == {-1, 1} and np.array_equal(h @ h.T, order * np.eye(order, dtype=np.int64))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_rotation_is_orthogonal_and_all_its_entries_are_alike(width, seed):
    q = rotation(width, seed).turn(torch.eye(width, dtype=torch.float64))
    torch.testing.assert_close(q @ q.t(), torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(q.abs(), torch.full_like(q, width**-0.5))


def test_it_is_the_product_with_the_matrix_written_out():
    turn = rotation(576, 1)
    assert [len(factor) for factor in turn.factors] == [36, 16] and turn.order == 576
    whole = turn.signs[:, None].double() * torch.kron(*(f.double() for f in turn.factors)) / 24
    x = torch.randn(3, 5, 576, dtype=torch.float64)
    torch.testing.assert_close(turn.turn(x), x @ whole)
    weight = torch.randn(576, 7, dtype=torch.float64)
    torch.testing.assert_close(turn.turn_rows(weight), whole.t() @ weight)


def test_the_seed_draws_the_signs():
    eye = torch.eye(64)
    assert torch.equal(rotation(64, 5).turn(eye), rotation(64, 5).turn(eye))
    assert not torch.equal(rotation(64, 5).turn(eye), rotation(64, 6).turn(eye))


def test_widths_of_models_fit():
    for width, factors in ((1536, [12, 64, 2]), (4864, [76, 64]), (18944, [148, 64, 2]), (11008, [5504, 2]),
                           (14336, [28, 64, 8]), (6912, [108, 64])):
        assert [len(factor) for factor in rotation(width).factors] == factors


@pytest.mark.parametrize("width", [3, 6, 92, 172])
def test_a_width_that_no_rotation_fits_is_one_sentence(width):
    with pytest.raises(UserError, match=f"no Hadamard matrix of order {width} can be built .*; use --transform smooth"):
        rotation(width)
