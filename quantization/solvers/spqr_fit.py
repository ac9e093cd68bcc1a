"""SpQR's grids and its column loop: what happens inside one permuted, damped linear.

Everything here is column-major: W is [in, out], so a group is [g, out] and a column of the paper is one contiguous row.

    fit     s = (max − min) / (2^b − 1),  z = −min / s (a float),  q = clamp(round(w / s + z), 0, 2^b − 1),  ŵ = s (q − z)
    second  the scales of 16 consecutive output rows are quantized by the same rule to ``scale_bits``, the zeros to ``zero_bits``
    loo     r_k = Σ_m ((w_m − q(w_m)) / d_m)² − Σ_{m≠k} ((w_m − q_{−k}(w_m)) / d_m)²;  q_{−k} is fitted without weight k
    loop    e_j = (w_j − ŵ_j) / d_j;  e_j² > T: w_j is kept at 16 bits instead;  w_k ← w_k − e_j U_jk for k > j

r_k > T marks likely outliers, which take no part in the group's fit; what is kept is decided again at e_j² > T.

Paper: arXiv 2306.03078, Algorithm 1 (which keeps the likely outliers themselves; the authors' code does as above, and so do we).
Deviations, all off under ``published``: second-level numbers are rounded to fp16 and kept weights to bf16 before they are used, so
the error that is fed back is that of what is stored; a group of (nearly) equal weights gets a range that reaches 0, where the
published code takes (−1, 1), whose step would coarsen the scales of 15 other rows.
"""

from dataclasses import dataclass

import torch

from core.types import LayerPlan
from quantization.bits import BILEVEL_ROWS
from quantization.solvers.grid import fp16_up

LAZY_COLUMNS = 128  # columns whose error is gathered before the rest of the matrix is touched; changes cost, not the result
REACH = 4096  # largest |zero point| of a grid we fit; beyond it fp16 could not hold the grid's position


@dataclass(frozen=True)
class Level:
    """A row of numbers quantized by the second level."""

    codes: torch.Tensor  # uint8 [out]
    step: torch.Tensor  # float32 [tiles], tiles = ceil(out / 16)
    zero: torch.Tensor  # float32 [tiles]

    def decode(self) -> torch.Tensor:
        """Return the numbers as stored, float32 [out]."""
        step, zero = (t.repeat_interleave(BILEVEL_ROWS)[: len(self.codes)] for t in (self.step, self.zero))
        return step * (self.codes.float() - zero)


@dataclass(frozen=True)
class Solved:
    """A linear after the column loop; column-major and in permuted order."""

    codes: torch.Tensor  # uint8 [in, out]
    values: torch.Tensor  # float32 [in, out]
    kept: torch.Tensor  # bool [in, out]
    scales: list[Level]  # one a column group
    zeros: list[Level]


@dataclass(frozen=True)
class Settings:
    """What the column loop needs beside the numbers."""

    layer: LayerPlan
    limit: float  # T, in units of e²; inf = keep nothing
    published: bool
    simplified: bool  # fit every group on all of its weights


def span(low: torch.Tensor, high: torch.Tensor, top: int, published: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The range that a grid with codes 0..top covers for weights in [low, high]; only a flat one is widened."""
    if published:
        flat = low == high
        return torch.where(flat, -1.0, low), torch.where(flat, 1.0, high)
    flat = (high - low) / top * REACH < low.abs().maximum(high.abs())
    return torch.where(flat, low.clamp(max=0), low), torch.where(flat, high.clamp(min=0), high)


def position(low: torch.Tensor, step: torch.Tensor, top: int) -> torch.Tensor:
    """Zero point −low / step; all zeros (step 0) decode to 0 whatever it is, so it takes the middle, which disturbs its tile least."""
    return torch.where(step == 0, top / 2, -low / torch.where(step == 0, 1.0, step))


def minmax(low: torch.Tensor, high: torch.Tensor, top: int, published: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and float zero point of the asymmetric grid over [low, high]."""
    low, high = span(low, high, top, published)
    step = (high - low) / top
    return step, position(low, step, top)


def to_codes(values: torch.Tensor, step: torch.Tensor, zero: torch.Tensor, top: int) -> torch.Tensor:
    """Codes of ``values``, as float32."""
    return (values / step.clamp(min=1e-9) + zero).round_().clamp_(0, top)


def second_level(values: torch.Tensor, bits: int, published: bool) -> Level:
    """Quantize float32 [out] in tiles of 16 consecutive rows; a ragged last tile is measured on its own rows."""
    top, rest = 2**bits - 1, -len(values) % BILEVEL_ROWS
    tiles = torch.cat([values, values[-1:].expand(rest)]).reshape(-1, BILEVEL_ROWS)
    low, high = span(tiles.amin(1), tiles.amax(1), top, published)
    step = (high - low) / top
    step = step if published else fp16_up(step)
    zero = position(low, step, top)
    zero = zero if published else zero.half().float()
    codes = to_codes(tiles, step[:, None], zero[:, None], top)
    return Level(codes.flatten()[: len(values)].to(torch.uint8), step, zero)


def leave_one_out(group: torch.Tensor, diagonal: torch.Tensor, top: int, published: bool) -> torch.Tensor:
    """r_k of every weight of a group [g, out] with g > 1.

    Only without its smallest or its largest weight does a group get another grid: three grids serve all g fits.
    """
    def errors(low, high):
        step, zero = minmax(low, high, top, published)
        back = step * (to_codes(group, step, zero, top) - zero)
        return ((group - back) / diagonal[:, None]).square_()

    ends = torch.sort(group, dim=0).values
    whole = errors(ends[0], ends[-1])
    base, out = whole.sum(0), whole.clone()  # the same grid without weight k: exactly its own error is saved
    for place, low, high in ((group.argmin(0), ends[1], ends[-1]), (group.argmax(0), ends[0], ends[-2])):
        rest = errors(low, high).scatter_(0, place[None], 0.0).sum(0)
        out.scatter_(0, place[None], (base - rest)[None])
    return out


def fit_group(group: torch.Tensor, diagonal: torch.Tensor, how: Settings) -> tuple[Level, Level]:
    """Scales and zero points of one column group [g, out] from its weights as they are now."""
    layer, top = how.layer, 2**how.layer.bits - 1
    if how.limit != float("inf") and not how.simplified and len(group) > 1:
        likely = leave_one_out(group, diagonal, top, how.published) > how.limit
        inside = (~likely).sum(0)
        mean = torch.where(likely, 0.0, group).sum(0) / inside.clamp(min=1)
        group = torch.where(likely, mean, group)
    scale, zero = minmax(group.amin(0), group.amax(0), top, how.published)
    return second_level(scale, layer.scale_bits, how.published), second_level(zero, layer.zero_bits, how.published)


def solve_columns(weight: torch.Tensor, upper: torch.Tensor, diagonal: torch.Tensor, how: Settings) -> Solved:
    """Quantize ``weight`` [in, out] (changed in place) from the first column to the last."""
    cols, size = len(weight), how.layer.group_size
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    values, kept = torch.empty_like(weight), torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    out = Solved(codes, values, kept, [], [])
    block = max(1, LAZY_COLUMNS // size) * size
    errors = torch.empty_like(weight[:block])
    for start in range(0, cols, block):
        stop = min(start + block, cols)
        for first in range(start, stop, size):
            last = min(first + size, stop)
            here = errors[first - start:last - start]
            _solve_group(weight, upper, diagonal, how, first, last, here, out)
            weight[last:stop].addmm_(upper[first:last, last:stop].T, here, alpha=-1)
        weight[stop:].addmm_(upper[start:stop, stop:].T, errors[: stop - start], alpha=-1)
    return out


def _solve_group(weight, upper, diagonal, how: Settings, first: int, last: int, errors: torch.Tensor, out: Solved) -> None:
    """Quantize columns first..last−1, feeding errors back within the group only; fills ``errors`` [g, out] and ``out``."""
    scales, zeros = fit_group(weight[first:last], diagonal[first:last], how)
    out.scales.append(scales)
    out.zeros.append(zeros)
    scale, zero, top = scales.decode(), zeros.decode(), 2**how.layer.bits - 1
    for j in range(first, last):
        now, d = weight[j], diagonal[j]
        code = to_codes(now, scale, zero, top)
        value = scale * (code - zero)
        error = (now - value) / d
        if how.limit != float("inf"):
            kept = error.square() > how.limit
            whole = now if how.published else now.bfloat16().float()
            value = torch.where(kept, whole, value)
            error = torch.where(kept, (now - whole) / d, error)
            code = torch.where(kept, to_codes(torch.zeros_like(now), scale, zero, top), code)
            out.kept[j] = kept
        out.codes[j], out.values[j], errors[j - first] = code, value, error
        if j + 1 < last:
            weight[j + 1:last].addr_(upper[j, j + 1:last], error, alpha=-1)
