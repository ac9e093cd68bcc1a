"""SpQR's grids and how it quantizes a column: what happens inside one permuted, damped linear.

Everything here is column-major: W is [in, out], so a group is [g, out] and a column of the paper is one contiguous row.

    fit     s = (max − min) / (2^b − 1),  z = −min / s (a float),  q = clamp(round(w / s + z), 0, 2^b − 1),
            ŵ = s (q − z)
    second  the scales of 16 consecutive output rows are quantized by the same rule to ``scale_bits``, the zeros to
            ``zero_bits``
    loo     r_k = Σ_m ((w_m − q(w_m)) / d_m)² − Σ_{m≠k} ((w_m − q_{−k}(w_m)) / d_m)²;  q_{−k} is fitted without weight k
    loop    quantization/solvers/columns.py with e_j = (w_j − ŵ_j) / d_j;  e_j² > T: w_j is kept at 16 bits instead

r_k > T marks likely outliers, which take no part in the group's fit; what is kept is decided again at e_j² > T.

Paper: arXiv 2306.03078, Algorithm 1 (which keeps the likely outliers themselves; the authors' code does as above, and
so do we).  Deviations, all off under ``published``: second-level numbers are rounded to fp16 and kept weights to 16
bits before they are used, so the error that is fed back is that of what is stored; a group of (nearly) equal weights
gets a range that reaches 0, where the published code takes (−1, 1), whose step would coarsen the scales of 15 other
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from core.lazy import torch
from core.types import LayerPlan
from quantization.bits import BILEVEL_ROWS
from quantization.kernels.columns import quantize_group, runs_fused
from quantization.solvers.columns import BLOCK, feed_back, slices
from quantization.solvers.grid import FloatGrid, Grid, float_grid
from quantization.solvers.kept import through

REACH = 4096  # largest |zero point| of a grid we fit; beyond it fp16 could not hold the grid's position


@dataclass(frozen=True, eq=False)
class Level:
    """A row of numbers quantized by the second level."""

    codes: torch.Tensor  # uint8 [out]
    scale: torch.Tensor  # float32 [tiles], tiles = ceil(out / 16)
    zero: torch.Tensor  # float32 [tiles]

    def decode(self) -> torch.Tensor:
        """Return the numbers as stored, float32 [out]."""
        scale, zero = (t.repeat_interleave(BILEVEL_ROWS)[: len(self.codes)] for t in (self.scale, self.zero))
        return Grid(scale, zero).values_(self.codes.float())


@dataclass(frozen=True, eq=False)
class Solved:
    """A linear after the column loop; column-major and in permuted order."""

    codes: torch.Tensor  # uint8 [in, out]
    values: torch.Tensor  # float32 [in, out]
    kept: torch.Tensor  # bool [in, out]
    scales: list[Level] = field(default_factory=list)  # one a column group
    zeros: list[Level] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """What the column loop needs beside the numbers."""

    layer: LayerPlan
    limit: float  # T, in units of e²; inf = keep nothing
    published: bool
    simplified: bool  # fit every group on all of its weights
    kept_dtype: torch.dtype | None = None  # the 16-bit dtype of kept weights; None = bfloat16

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.layer.bits - 1

    @property
    def keeps(self) -> bool:
        """Whether any weight may be kept."""
        return self.limit != float("inf")


def widened(low: torch.Tensor, high: torch.Tensor, top: int, published: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The range that a grid with codes 0..top covers for weights in [low, high]; only a flat one is widened."""
    if published:
        flat = low == high
        return torch.where(flat, -1.0, low), torch.where(flat, 1.0, high)
    flat = (high - low) / top * REACH < low.abs().maximum(high.abs())
    return torch.where(flat, low.clamp(max=0), low), torch.where(flat, high.clamp(min=0), high)


def minmax(low: torch.Tensor, high: torch.Tensor, top: int, published: bool) -> FloatGrid:
    """The asymmetric grid over [low, high]."""
    return float_grid(*widened(low, high, top, published=published), top)


def second_level(values: torch.Tensor, bits: int, published: bool) -> Level:
    """Quantize float32 [out] in tiles of 16 consecutive rows; a ragged last tile is measured on its own rows."""
    top, rest = 2**bits - 1, -len(values) % BILEVEL_ROWS
    tiles = torch.cat([values, values[-1:].expand(rest)]).reshape(-1, BILEVEL_ROWS)
    low, high = widened(tiles.amin(1, keepdim=True), tiles.amax(1, keepdim=True), top, published=published)
    grid = float_grid(low, high, top, stored=not published)
    codes = grid.codes(tiles).flatten()[: len(values)].to(torch.uint8)
    return Level(codes, grid.scale[:, 0], grid.zero[:, 0])


def leave_one_out(group: torch.Tensor, diagonal: torch.Tensor, top: int, published: bool) -> torch.Tensor:
    """r_k of every weight of a group [g, out] with g > 1.

    Only without its smallest or its largest weight does a group get another grid: three grids serve all g fits.
    """
    def errors(low, high):
        grid = minmax(low, high, top, published=published)
        return ((group - grid.values_(grid.codes(group))) / diagonal[:, None]).square_()

    ends = torch.sort(group, dim=0).values
    whole = errors(ends[0], ends[-1])
    base, saved = whole.sum(0), whole.clone()  # the same grid without weight k: exactly its own error is saved
    for place, low, high in ((group.argmin(0), ends[1], ends[-1]), (group.argmax(0), ends[0], ends[-2])):
        rest = errors(low, high).scatter_(0, place[None], 0.0).sum(0)
        saved.scatter_(0, place[None], (base - rest)[None])
    return saved


def fit_group(group: torch.Tensor, diagonal: torch.Tensor, how: Settings) -> tuple[Level, Level]:
    """Scales and zero points of one column group [g, out] from its weights as they are now."""
    if how.keeps and not how.simplified and len(group) > 1:
        likely = leave_one_out(group, diagonal, how.top, published=how.published) > how.limit
        inside = (~likely).sum(0)
        mean = torch.where(likely, 0.0, group).sum(0) / inside.clamp(min=1)
        group = torch.where(likely, mean, group)
    grid = minmax(group.amin(0), group.amax(0), how.top, published=how.published)
    return (second_level(grid.scale, how.layer.scale_bits, how.published),
            second_level(grid.zero, how.layer.zero_bits, how.published))


def solve_columns(weight: torch.Tensor, upper: torch.Tensor, diagonal: torch.Tensor, how: Settings) -> Solved:
    """Quantize ``weight`` [in, out] (changed in place) from the first column to the last."""
    loop, size = _Columns(weight, diagonal, how), how.layer.group_size
    blocks = [slices(block.stop, size, block.start) for block in slices(len(weight), max(1, BLOCK // size) * size)]
    whole = size <= BLOCK and runs_fused(weight.device)  # wider groups do not fit into a program's registers
    feed_back(weight, upper, blocks, quantize=loop.quantize, pivots=diagonal, fused=True,
              at_once=loop.with_kernel(upper) if whole else None)
    return loop.solved


class _Columns:
    """One linear on its way through the column loop."""

    def __init__(self, weight: torch.Tensor, diagonal: torch.Tensor, how: Settings):
        self.diagonal, self.how = diagonal, how
        codes, kept = (torch.zeros_like(weight, dtype=dtype) for dtype in (torch.uint8, torch.bool))
        self.solved = Solved(codes, weight, kept)

    def quantize(self, j: int, column: torch.Tensor) -> torch.Tensor:
        """ŵ of column ``j``; its group is fitted when its first column comes up."""
        if j % self.how.layer.group_size == 0:
            self._fit(slice(j, j + self.how.layer.group_size))
        codes = self.grid.codes(column)
        self.solved.codes[j] = codes
        value = self.grid.values_(codes)
        if not self.how.keeps:
            return value
        kept = ((column - value) / self.diagonal[j]).square() > self.how.limit
        self.solved.kept[j] = kept
        self.solved.codes[j] = torch.where(kept, self.code_of_zero, self.solved.codes[j])
        return torch.where(kept, column if self.how.published else through(column, self.how.kept_dtype), value)

    def with_kernel(self, upper: torch.Tensor) -> Callable[[slice, slice, torch.Tensor], None]:
        """What :meth:`quantize` does, for all columns of a group at once."""
        how, pivots = self.how, self.diagonal.contiguous()
        stored = None if how.published else how.kept_dtype or torch.bfloat16
        keep = self.solved.kept if how.keeps else None

        def quantize(block: slice, span: slice, errors: torch.Tensor) -> None:
            self._fit(span)
            quantize_group(self.solved.values, upper, pivots, self.grid, self.solved.codes, errors, block=block,
                           group=span, keep=keep, stored=stored, limit=how.limit)
        return quantize

    def _fit(self, group: slice) -> None:
        scales, zeros = fit_group(self.solved.values[group], self.diagonal[group], self.how)
        self.solved.scales.append(scales)
        self.solved.zeros.append(zeros)
        self.grid = FloatGrid(scales.decode(), zeros.decode(), self.how.top)
        self.code_of_zero = self.grid.codes(torch.zeros_like(self.grid.zero)).to(torch.uint8)
