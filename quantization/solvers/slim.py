"""SliM-LLM: bits per column group from a search, then GPTQ group by group with a calibrated range.

For one linear W [out, in] at N bits, groups of g input columns, U and d = diag U of the damped Hessian (quantization/solvers/gptq.py):

    bits of the groups   N − 1, N or N + 1, the same for all rows of a group (quantization/solvers/slim_search.py)
    range (b >= 2 bits)  per row and group the factor p of {1, 1.002, ..., 1.1, 0.998, ..., 0.9} of least
                         Σ_others |ŵ − w|^2.4 + λ Σ_salient |ŵ − w|^2.4,   s = p (max − min) / (2^b − 1), z = round(−p min / s)
    1-bit groups         ŵ = m ± s, m = mean w, s = mean|w − m|, sign(0) = +1
    columns              GPTQ's updates, one block a group; a group's range is fitted to its updated weights

Salient = the weights of the group (over all rows) whose salience w²/d² is at least the smallest one that lies over two
standard deviations from its mean.  At λ = 1, the published default, salience does not enter the range.

Paper: arXiv 2405.14917.  Deviations, of the published code as well: two standard deviations and the power 2.4 where the
paper writes three and the square.  Ours: scales and 1-bit means are fp16 as stored and the range is chosen with them so;
s = mean|w − m| (the published code takes mean|w|); one damping ranks the groups in the search and in the result.

``published=True`` gives back what the code gives: float32 scales, mean|w|, sign(0) = 0 (codes of 1-bit groups are then
sign + 1), 0.01 added to the Hessian's diagonal before anything else (so inputs that are always 0 keep their weights),
and, with bits from the search, groups below N bits before the first of N or more rounded around the fixed
zero point 2^(b−1) although their range is not symmetric.  Given ``group_bits``, the code has neither of the last two.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from core.errors import UserError
from core.registry import quantizer
from core.types import Aid, LayerPlan, Stored
from quantization.bits import group_widths
from quantization.solvers.grid import fp16_up, spread_groups
from quantization.solvers.slim_search import assign_bits, binary, ends, group_salience, group_slices, search_bits, signs
from streams.hessians import Factor, factorise, relative_error

POWER = 2.4

OUTLYING = 2.0  # standard deviations

FACTORS = (1.0, *torch.linspace(1, 1.1, 51)[1:].tolist(), *torch.linspace(1, 0.9, 51)[1:].tolist())  # the first of equals wins

ADDED = 0.01  # published: what the search leaves on the Hessian's diagonal


def solve_slim(weight: torch.Tensor, hessian: torch.Tensor, layer: LayerPlan, inputs: Iterable[torch.Tensor] | None = None, *,
               percdamp: float = 0.01, lambda_salience: float = 1.0, published: bool = False, group_bits: np.ndarray | None = None,
               max_tokens: int | None = None, shared: dict | None = None, what: str = "a linear") -> Stored:
    """Quantize one linear.

    weight: float32 [out, in]; hessian: float32 [in, in], undamped, left as it is; layer: N bits and the group size.
    ``inputs`` yields the linear's inputs, [T, in] a sequence, of which the search reads ``max_tokens``; with
    ``group_bits`` nothing is searched.  ``shared`` keeps the factors for the linears that read the same inputs.
    """
    weight, original = weight.float(), weight.float()
    first, final = _factors(hessian, percdamp, published, group_bits is None, {} if shared is None else shared, what)
    weight = torch.where(final.dead, 0.0, weight)
    notes = {"damp": final.damp, "tries": final.tries, "percdamp": percdamp, "lambda_salience": lambda_salience}
    searched = group_bits is None
    if searched:
        if inputs is None:
            raise UserError(f"{what}: SliM-LLM's search reads the linear's inputs; hand over inputs or the bits of its groups")
        ranking = group_salience(weight, first.diagonal, layer.group_size)
        group_bits, found = search_bits(weight, ranking, inputs, layer.bits, layer.group_size, published, max_tokens)
        if published:
            group_bits = assign_bits(group_salience(weight, final.diagonal, layer.group_size), found["k"], layer.bits)
        notes |= found
    group_bits = _checked(group_bits, layer, weight.shape[1], what)
    leaked = _leaked(group_bits, layer.bits) if published and searched else 0
    codes, scale, zero = _columns(weight, final, group_bits, layer.group_size, lambda_salience, published, leaked)
    made = replace(layer, form="slim", group_bits=group_bits, scale_bits=32 if published else 16, zero_bits=None)
    parts = {"codes": codes, "scale": scale, "zero": zero}
    values = decode(parts, made)
    notes |= {"relative_error": relative_error(original, values, hessian)}
    return Stored(values, made, parts, notes)


def decode(parts: dict[str, torch.Tensor], layer: LayerPlan) -> torch.Tensor:
    """ŵ float32 [out, in] from codes [out, in], scale and zero [out, G]."""
    codes, width = parts["codes"].float(), parts["codes"].shape[1]
    scale, zero = (spread_groups(parts[k], layer.group_size, width) for k in ("scale", "zero"))
    single = torch.as_tensor(_column_bits(layer, width) == 1, device=codes.device)
    sign = codes - 1 if layer.scale_bits == 32 else 2 * codes - 1
    return torch.where(single, zero + scale * sign, scale * (codes - zero))


def _factors(hessian: torch.Tensor, percdamp: float, published: bool, searched: bool, shared: dict, what: str) -> tuple[Factor, Factor]:
    """Factors for the search and for the result: one and the same, unless published."""
    leftover = published and searched
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
    out, groups = np.asarray(group_bits, dtype=np.uint8), len(group_widths(width, layer.group_size))
    if len(out) != groups or not ((out >= 1) & (out <= 8)).all():
        raise UserError(f"{what}: group bits {sorted(set(out.tolist()))} for {len(out)} groups; give 1 to 8 for each of its {groups} groups")
    return out


def _leaked(group_bits: np.ndarray, bits: int) -> int:
    """How many groups the published code meets before one of N bits or more."""
    return int(np.argmax(group_bits >= bits))


def _columns(weight, factor: Factor, group_bits, group_size: int, lambda_salience: float, published: bool, leaked: int):
    """GPTQ's loop, one block a group: codes uint8 [out, in], scale and zero float32 [out, G]."""
    columns = weight.t().contiguous()  # [in, out]: a column of W is one row here, contiguous
    codes, fits, upper = torch.zeros_like(columns, dtype=torch.uint8), [], factor.upper
    for g, span in enumerate(group_slices(weight.shape[1], group_size)):
        bits, work, block = int(group_bits[g]), columns[span], upper[span, span]
        pivots, errors = block.diagonal().tolist(), torch.zeros_like(work)
        scale, zero = fit(work, block.diagonal(), bits, lambda_salience, published, fixed_zero=g < leaked)
        for i, pivot in enumerate(pivots):
            codes[span.start + i], value = _rounded(work[i], scale, zero, bits, published)
            errors[i] = (work[i] - value) / pivot
            work[i + 1:].addr_(block[i, i + 1:], errors[i], alpha=-1)
        columns[span.stop:] -= upper[span, span.stop:].t() @ errors
        fits.append((scale, zero))
    scale, zero = (torch.stack(t, 1) for t in zip(*fits))
    return codes.t().contiguous(), scale, zero


def _rounded(column: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, published: bool):
    """Codes uint8 [out] and values [out] of one column."""
    if bits == 1:
        sign = signs(column - zero, published)
        return (sign + 1 if published else (sign + 1) / 2).to(torch.uint8), zero + scale * sign
    codes = (column / scale).round_().add_(zero).clamp_(0, 2**bits - 1)
    return codes.to(torch.uint8), (codes - zero).mul_(scale)


def fit(columns: torch.Tensor, diagonal: torch.Tensor, bits: int, lambda_salience: float = 1.0, published: bool = False,
        fixed_zero: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point (1 bit: mean) of each row, float32 [out], for a group's ``columns`` [g, out]; ``diagonal`` d [g]."""
    if bits == 1:
        return _fit_binary(columns.t(), published)
    low, high = (end[:, 0] for end in ends(columns.t()))
    top, weights = 2**bits - 1, None if lambda_salience == 1 else _weights(columns, diagonal, lambda_salience)
    best = torch.full_like(low, torch.inf)
    chosen = [torch.ones_like(low), torch.zeros_like(low)]
    for factor in FACTORS:
        scale = (factor * high - factor * low) / top
        scale = scale if published else fp16_up(scale)
        zero = torch.full_like(scale, (top + 1) / 2) if fixed_zero else (-(factor * low) / scale).round_()
        zero = zero if published else zero.clamp_(0, top)
        error = (columns / scale).round_().add_(zero).clamp_(0, top).sub_(zero).mul_(scale).sub_(columns).abs_().pow_(POWER)
        error = (error if weights is None else error.mul_(weights)).sum(0)
        better = error < best
        best = torch.where(better, error, best)
        chosen = [torch.where(better, new, old) for new, old in zip((scale, zero), chosen)]
    return tuple(chosen)


def _fit_binary(weight: torch.Tensor, published: bool) -> tuple[torch.Tensor, torch.Tensor]:
    mean, scale = binary(weight, published)
    if not published:
        mean = mean.half().float()
        scale = (weight - mean).abs().mean(1, keepdim=True).half().float()
        if not torch.isfinite(mean + scale).all():
            raise ValueError("a 1-bit group's mean or scale exceeds 65504, the largest fp16 number; the weights are broken")
    return scale[:, 0].contiguous(), mean[:, 0].contiguous()


def _weights(columns: torch.Tensor, diagonal: torch.Tensor, lambda_salience: float) -> torch.Tensor:
    """λ for the salient weights of a group [g, out], 1 for the others; none is salient if no salience lies far out."""
    sal = columns.square() / diagonal.square()[:, None]
    outlying = (sal - sal.mean()).abs() > OUTLYING * sal.std()
    threshold = torch.where(outlying, sal, torch.inf).min()
    return torch.where(sal >= threshold, lambda_salience, 1.0)


def _column_bits(layer: LayerPlan, width: int) -> np.ndarray:
    return np.repeat(layer.group_bits.astype(np.int64), group_widths(width, layer.group_size))


@quantizer("slim", needs=("hessian", "inputs"), sequential=False, options=("lambda_salience", "percdamp"))
def slim(weight: torch.Tensor, layer: LayerPlan, aid: Aid) -> Stored:
    """SliM-LLM with its own bits; a plan that already has the bits of its groups is not searched."""
    settings = {name: aid.options[name] for name in ("lambda_salience", "percdamp") if name in aid.options}
    return solve_slim(weight, aid.hessian, layer, None if aid.replay is None else aid.replay(), published=aid.options.get("published", False),
                      group_bits=layer.group_bits, shared=aid.shared, what=aid.fqn, **settings)
