"""SliM-LLM: bits per column group from a search, then GPTQ group by group with a calibrated range.

For one linear W [out, in] at N bits, groups of g input columns, U and d = diag U as in quantization/solvers/columns.py:

    bits of the groups   N − 1, N or N + 1, the same for all rows of a group (quantization/solvers/slim_search.py)
    range (b >= 2 bits)  per row and group the factor p of {1, 1.002, ..., 1.1, 0.998, ..., 0.9} of least
                         Σ_others |ŵ − w|^2.4 + λ Σ_salient |ŵ − w|^2.4,
                         s = p (max − min) / (2^b − 1),   z = round(−p min / s)
    1-bit groups         ŵ = m ± s, m = mean w, s = mean|w − m|, sign(0) = +1
    columns              one block a group; a group's range is fitted to its updated weights

Salient = the weights of the group (over all rows) whose salience w²/d² is at least the smallest one that lies over two
standard deviations from its mean.  At λ = 1, the published default, salience does not enter the range.

Paper: arXiv 2405.14917.  Deviations, of the published code as well: two standard deviations and the power 2.4 where the
paper writes three and the square.  Ours: scales and 1-bit means are fp16 as stored and the range is chosen with them
so; s = mean|w − m| (the published code takes mean|w|); one damping ranks the groups in the search and in the result.

``published=True`` gives back what the code gives: float32 scales, mean|w|, sign(0) = 0 (codes of 1-bit groups are then
sign + 1), 0.01 added to the Hessian's diagonal before anything else (so inputs that are always 0 keep their weights),
and, with bits from the search, groups below N bits before the first of N or more rounded around the fixed
zero point 2^(b−1) although their range is not symmetric.  Given ``group_bits``, the code has neither of the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import numpy as np

from core.errors import UserError
from core.lazy import torch
from core.registry import quantizer
from core.settings import Setting
from core.types import Aid, LayerPlan, Stored
from quantization.bits import column_bits, group_widths
from quantization.kernels.columns import quantize_group, runs_fused
from quantization.solvers.columns import BLOCK, column_major, feed_back, slices
from quantization.solvers.grid import Grid, SignGrid, best_range, ends, sign_grid, spread_groups
from quantization.solvers.slim_search import assign_bits, group_salience, search_bits
from streams.hessians import PERCDAMP, Factor, factorise, relative_error

POWER = 2.4

OUTLYING = 2.0  # standard deviations

ADDED = 0.01  # published: what the search leaves on the Hessian's diagonal


@cache
def factors() -> tuple[float, ...]:
    """The factors on a group's [min, max] in the order in which they are tried; the first of equals wins."""
    return (1.0, *torch.linspace(1, 1.1, 51)[1:].tolist(), *torch.linspace(1, 0.9, 51)[1:].tolist())


def solve_slim(weight: torch.Tensor, hessian: torch.Tensor, layer: LayerPlan,
               inputs: Iterable[torch.Tensor] | None = None, *, percdamp: float = 0.01, lambda_salience: float = 1.0,
               published: bool = False, group_bits: np.ndarray | None = None, max_tokens: int | None = None,
               shared: dict | None = None, what: str = "a linear") -> Stored:
    """Quantize one linear.

    weight: float32 [out, in]; hessian: float32 [in, in], undamped, left as it is; layer: N bits and the group size.
    ``inputs`` yields the linear's inputs, [T, in] a sequence, of which the search reads ``max_tokens``; with
    ``group_bits`` nothing is searched.  ``shared`` keeps the factors for the linears that read the same inputs.
    Raises UserError for bits that the form cannot store or a search without inputs.
    """
    original, searched, size = weight.float(), group_bits is None, layer.group_size
    leftover = published and searched
    first, final = _factors(hessian, percdamp, leftover, shared={} if shared is None else shared, what=what)
    weight = torch.where(final.dead, 0.0, original)
    notes = {"damp": final.damp, "tries": final.tries, "percdamp": percdamp, "lambda_salience": lambda_salience}
    if searched:
        if inputs is None:
            raise UserError(f"{what}: SliM-LLM's search reads the linear's inputs; hand over inputs or the bits of its "
                            "groups")
        ranking = group_salience(weight, first.diagonal, size)
        group_bits, search = search_bits(weight, ranking, inputs, bits=layer.bits, group_size=size, published=published,
                                         max_tokens=max_tokens)
        if published:
            group_bits = assign_bits(group_salience(weight, final.diagonal, size), search["k"], layer.bits)
        notes |= search
    group_bits = _checked(group_bits, layer, weight.shape[1], what=what)
    leaked = _leaked(group_bits, layer.bits) if leftover else 0

    def fit_group(number: int, columns: torch.Tensor, diagonal: torch.Tensor) -> Grid:
        return fit(columns, diagonal, int(group_bits[number]), lambda_salience=lambda_salience, published=published,
                   fixed_zero=number < leaked)

    parts = _columns(weight, final, size, fit_group=fit_group)
    layer = replace(layer, form="slim", group_bits=group_bits, scale_bits=32 if published else 16, zero_bits=None)
    values = decode(parts, layer)
    return Stored(values, layer, parts, notes=notes | {"relative_error": relative_error(original, values, hessian)})


def decode(parts: dict[str, torch.Tensor], layer: LayerPlan) -> torch.Tensor:
    """ŵ float32 [out, in] from codes [out, in], scale and zero [out, G]."""
    width = parts["codes"].shape[1]
    scale, zero = (spread_groups(parts[k], layer.group_size, width) for k in ("scale", "zero"))
    one_bit = torch.as_tensor(column_bits(layer, width) == 1, device=scale.device)
    grids = SignGrid(scale, zero, published=layer.scale_bits == 32), Grid(scale, zero)
    return torch.where(one_bit, *(grid.values_(parts["codes"].to(torch.float32, copy=True)) for grid in grids))


def _factors(hessian: torch.Tensor, percdamp: float, leftover: bool, shared: dict, what: str) -> tuple[Factor, Factor]:
    """Factors for the search and for the result: one and the same unless the published search leaves something over."""
    key = ("slim", percdamp, leftover)
    if key not in shared:
        if leftover:
            hessian = hessian.clone()
            hessian.diagonal()[hessian.diagonal() == 0] = 1.0
            hessian.diagonal().add_(ADDED)
        final = factorise(hessian, percdamp, what)
        shared[key] = (factorise(hessian, 0.0, what) if leftover else final), final
    return shared[key]


def _checked(group_bits, layer: LayerPlan, width: int, what: str) -> np.ndarray:
    bits, groups = np.asarray(group_bits, dtype=np.uint8), len(group_widths(width, layer.group_size))
    if len(bits) != groups or not ((bits >= 1) & (bits <= 8)).all():
        raise UserError(f"{what}: group bits {sorted(set(bits.tolist()))} for {len(bits)} groups; give 1 to 8 for each "
                        f"of its {groups} groups")
    return bits


def _leaked(group_bits: np.ndarray, bits: int) -> int:
    """How many groups the published code meets before one of N bits or more."""
    return int(np.argmax(group_bits >= bits))


def _columns(weight: torch.Tensor, factor: Factor, group_size: int,
             fit_group: Callable[[int, torch.Tensor, torch.Tensor], Grid]) -> dict[str, torch.Tensor]:
    """The column loop, one block a group: codes uint8 [out, in], scale and zero float32 [out, G]."""
    columns = column_major(weight)
    codes, grids, spans = torch.zeros_like(columns, dtype=torch.uint8), [], slices(len(columns), group_size)

    def grid_of(j: int) -> Grid:
        if j % group_size == 0:
            span = spans[len(grids)]
            grids.append(fit_group(len(grids), columns[span], factor.diagonal[span]))
        return grids[-1]

    def quantize(j: int, column: torch.Tensor) -> torch.Tensor:
        grid = grid_of(j)
        column_codes = grid.codes(column)
        codes[j] = column_codes
        return grid.values_(column_codes)

    def at_once(block: slice, span: slice, errors: torch.Tensor) -> None:
        quantize_group(columns, factor.upper, pivots, grid_of(span.start), codes, errors, block=block, group=span)

    if runs_fused(columns.device):
        pivots, parts = factor.diagonal.contiguous(), [slices(span.stop, BLOCK, span.start) for span in spans]
        feed_back(columns, factor.upper, [[part] for group in parts for part in group], quantize, at_once=at_once)
    else:
        feed_back(columns, factor.upper, [[span] for span in spans], quantize)
    scale, zero = (torch.stack(numbers, 1) for numbers in zip(*((grid.scale, grid.zero) for grid in grids)))
    return {"codes": codes.t().contiguous(), "scale": scale, "zero": zero}


def fit(columns: torch.Tensor, diagonal: torch.Tensor, bits: int, *, lambda_salience: float = 1.0,
        published: bool = False, fixed_zero: bool = False) -> Grid:
    """The grid of each row, [out], for a group's ``columns`` [g, out]; ``diagonal`` d [g]."""
    if bits == 1:
        grid = sign_grid(columns.t(), published=published, stored=not published)
        return SignGrid(grid.scale[:, 0].contiguous(), grid.zero[:, 0].contiguous(), published=published)
    weights = None if lambda_salience == 1 else _weights(columns, diagonal, lambda_salience)
    return best_range(columns, *ends(columns), top=2**bits - 1, factors=factors(), power=POWER, weights=weights,
                      stored=not published, symmetric=fixed_zero)


def _weights(columns: torch.Tensor, diagonal: torch.Tensor, lambda_salience: float) -> torch.Tensor:
    """λ for the salient weights of a group [g, out], 1 for the others; none is salient if no salience lies far out."""
    sal = columns.square() / diagonal.square()[:, None]
    outlying = (sal - sal.mean()).abs() > OUTLYING * sal.std()
    threshold = torch.where(outlying, sal, torch.inf).min()
    return torch.where(sal >= threshold, lambda_salience, 1.0)


LAMBDA_SALIENCE = Setting("lambda_salience", float, 1.0, "weight of a group's salient weights in the fit of its range",
                          low=0, flag=False)


@quantizer("slim", needs=("hessian", "inputs"), sequential=False, options=(LAMBDA_SALIENCE, PERCDAMP))
def slim(weight: torch.Tensor, layer: LayerPlan, aid: Aid) -> Stored:
    """SliM-LLM with its own bits; a plan that already has the bits of its groups is not searched."""
    settings = {name: aid.options[name] for name in ("lambda_salience", "percdamp", "published") if name in aid.options}
    inputs = None if aid.replay is None else aid.replay()
    return solve_slim(weight, aid.hessian, layer, inputs=inputs, group_bits=layer.group_bits, shared=aid.shared,
                      what=aid.fqn, **settings)
