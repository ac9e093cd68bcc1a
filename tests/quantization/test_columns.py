"""The column loop under three solvers, and the grids under all of them."""

import pytest
import torch

from quantization.solvers.columns import column_major, feed_back, slices
from quantization.solvers.grid import FloatGrid, Grid, MinimumGrid, SignGrid, best_range, ends, integer_grid

COLUMNS, ROWS = 37, 5


def linear():
    """Columns [in, out] and an upper triangular factor."""
    rng = torch.Generator().manual_seed(0)
    upper = torch.randn(COLUMNS, COLUMNS, generator=rng).triu() * 0.2
    upper.diagonal().copy_(1 + torch.rand(COLUMNS, generator=rng))
    return torch.randn(COLUMNS, ROWS, generator=rng), upper


def one_by_one(columns, upper) -> tuple[torch.Tensor, float]:
    """The formula as it stands, in float64, to whole numbers."""
    columns, upper, loss = columns.double(), upper.double(), 0.0
    for j in range(len(columns)):
        value = columns[j].round()
        error = (columns[j] - value) / upper[j, j]
        columns[j + 1:] -= torch.outer(upper[j, j + 1:], error)
        columns[j], loss = value, loss + float(error.square().sum())
    return columns, loss


CUTS = {"one block": [slices(COLUMNS, 64)], "blocks": [[block] for block in slices(COLUMNS, 8)],
        "spans in blocks": [slices(block.stop, 3, block.start) for block in slices(COLUMNS, 12)]}


@pytest.mark.parametrize("fused", (False, True))
@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_gives_the_formula(cut, fused):
    columns, upper = linear()
    want, want_loss = one_by_one(columns, upper)
    visited = []

    def quantize(j, column):
        visited.append(j)
        return column.round()

    loss = feed_back(columns, upper, CUTS[cut], quantize=quantize, fused=fused)
    assert visited == list(range(COLUMNS)) and torch.equal(columns, want.float())
    assert loss.dtype == torch.float64 and float(loss) == pytest.approx(want_loss, rel=1e-5)


def test_an_endless_pivot_passes_nothing_on():
    columns, upper = linear()
    pivots, before = torch.full((COLUMNS,), torch.inf), columns.clone()
    feed_back(columns, upper, CUTS["blocks"], quantize=lambda j, column: column.round(), pivots=pivots)
    assert torch.equal(columns, before.round())


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (4, 9)])
def test_columns_are_a_copy(shape):
    weight = torch.ones(shape)
    columns = column_major(weight)
    columns.zero_()
    assert columns.shape == shape[::-1] and columns.is_contiguous() and weight.all()


def test_codes_and_values_of_each_grid_by_hand():
    weight = torch.tensor([-1.0, 0.3, 0.8, 9.0])
    cases = {Grid: (2.0, [0, 3, 4, 7], [-1.0, 0.5, 1.0, 2.5]), FloatGrid: (1.6, [0, 2, 3, 7], [-0.8, 0.2, 0.7, 2.7]),
             MinimumGrid: (-1.0, [0, 3, 4, 7], [-1.0, 0.5, 1.0, 2.5]),
             SignGrid: (0.3, [0, 1, 1, 1], [-0.2, 0.8, 0.8, 0.8])}
    for kind, (zero, codes, values) in cases.items():
        grid = kind(torch.tensor(0.5), torch.tensor(zero), 7)
        assert grid.codes(weight).tolist() == codes, kind
        torch.testing.assert_close(grid.values_(grid.codes(weight)), torch.tensor(values))
    published = SignGrid(torch.tensor(0.5), torch.tensor(0.3), published=True)
    assert published.codes(weight).tolist() == [0, 1, 2, 2]
    assert published.values_(torch.ones(1)).item() == pytest.approx(0.3)


def test_the_first_of_equal_factors_wins():
    columns = torch.zeros(4, 3)
    low, high = ends(columns)
    assert low.tolist() == [[-1.0] * 3] and high.tolist() == [[1.0] * 3]
    best = best_range(columns, low, high, top=3, factors=(0.5, 1.0, 0.5), power=2.4)
    assert torch.equal(best.scale, integer_grid(low[0] * 0.5, high[0] * 0.5, 3).scale)
