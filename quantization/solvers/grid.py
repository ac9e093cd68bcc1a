"""Grids: from a range of weights to scale and zero point, from there to codes and back to weights.

With b bits a code q runs from 0 to top = 2^b − 1.  A range [min, max] gives s = (max − min) / top, and

    Grid         z = clamp(round(−min / s), 0, top)   q = clamp(round(w / s) + z, 0, top)       ŵ = s (q − z)
    FloatGrid    z = −min / s, not rounded            q = clamp(round(w / s + z), 0, top)       ŵ = s (q − z)
    MinimumGrid  z = min                              q = clamp(round((w − z) / s), 0, top)     ŵ = s q + z
    SignGrid     1 bit around z = mean                q says whether w lies below z             ŵ = z ± s

Scales that are stored at 16 bits are fp16, rounded up, so that no end of the range is cut; those of the form "log" are
rounded up to eighths of an octave (LogScale), a finer step than 2 to 4 bits of a weight need.  Scale, zero point and
weights have one shape or shapes that broadcast: [out] for a column of a group, [out, G, 1] for all groups at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from core.lazy import torch
from core.types import LayerPlan
from quantization.bits import code_bits


@dataclass(frozen=True, eq=False)
class Grid:
    """The points that a weight can be rounded to: whole zero points."""

    scale: torch.Tensor  # float32
    zero: torch.Tensor  # float32
    top: int | torch.Tensor = 255  # the largest code; a tensor where groups have different bits

    @cached_property
    def divisor(self) -> torch.Tensor:
        """The scale, or 1 where it is 0: in a group of zeros every divisor gives the zero point as code."""
        return nonzero(self.scale)

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes of the nearest points, whole numbers in float32."""
        return clip((weight / self.divisor).round_().add_(self.zero), self.top)

    def values_(self, codes: torch.Tensor) -> torch.Tensor:
        """The weights that float32 ``codes`` stand for, in their place."""
        return codes.sub_(self.zero).mul_(self.scale)


class FloatGrid(Grid):
    """Zero points that are not rounded, as in SpQR; its scales may come out as 0 or less after their own rounding."""

    @cached_property
    def divisor(self) -> torch.Tensor:
        """The scale, at least 1e-9."""
        return self.scale.clamp(min=1e-9)

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes of the nearest points, whole numbers in float32."""
        return clip((weight / self.divisor + self.zero).round_(), self.top)


class MinimumGrid(Grid):
    """The smallest weight in place of a zero point, as in the published TAQ script."""

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes of the nearest points, whole numbers in float32."""
        return clip(((weight - self.zero) / self.divisor).round_(), self.top)

    def values_(self, codes: torch.Tensor) -> torch.Tensor:
        """The weights that float32 ``codes`` stand for, in their place."""
        return codes.mul_(self.scale).add_(self.zero)


@dataclass(frozen=True, eq=False)
class SignGrid(Grid):
    """One bit: codes 0 and 1; published: 0, 1 and 2, where 1 stands for the mean itself."""

    published: bool = False

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes of the nearest points, whole numbers in float32; a weight at the mean counts as above it."""
        centred = weight - self.zero
        return centred.sign() + 1 if self.published else torch.where(centred < 0, 0.0, 1.0)

    def values_(self, codes: torch.Tensor) -> torch.Tensor:
        """The weights that float32 ``codes`` stand for, in their place."""
        signs = codes.sub_(1) if self.published else codes.mul_(2).sub_(1)
        return signs.mul_(self.scale).add_(self.zero)


def clip(codes: torch.Tensor, top: int | torch.Tensor) -> torch.Tensor:
    """``codes``, changed in place, between 0 and ``top``."""
    return codes.clamp_(0, top) if isinstance(top, int) else codes.clamp_(min=0).minimum(top)


def nonzero(scale: torch.Tensor) -> torch.Tensor:
    """The scale, 1 where it is 0."""
    return torch.where(scale == 0, 1.0, scale)


def fp16_up(value: torch.Tensor) -> torch.Tensor:
    """Round positive float32 up to the next fp16 number, returned as float32."""
    half = value.half()
    if torch.isinf(half).any():
        raise ValueError("a group's scale exceeds 65504, the largest fp16 number; the weights are broken")
    low = half.float() < value
    return torch.where(low, (half.view(torch.int16) + 1).view(torch.float16), half).float()


@dataclass(frozen=True)
class LogScale:
    """Scales of one linear in few bits: 2^(exponent + (code − last) / OCTAVE), code 0 .. last = 2^bits − 1."""

    exponent: int  # of the largest scale
    bits: int = 6
    OCTAVE: ClassVar[int] = 8  # steps of a factor of two

    @classmethod
    def over(cls, largest: float, bits: int = 6) -> LogScale:
        """For scales up to twice the largest: groups that are fitted late hold what earlier columns lost."""
        return cls(math.ceil(math.log2(largest)) + 1 if largest > 0 else 0, bits)

    @property
    def last(self) -> int:
        return 2**self.bits - 1

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What is stored of a linear besides its scales' codes."""
        return {"exponent": torch.tensor([self.exponent], dtype=torch.int8)}

    def codes(self, scale: torch.Tensor) -> torch.Tensor:
        """The codes of the next scales up, whole numbers in float32; the last one for what is larger than all."""
        steps = (scale.clamp(min=1e-30).log2() - self.exponent) * self.OCTAVE
        # a scale that is one of ours must come back as itself
        return (steps - 1e-3).ceil_().add_(self.last).clamp_(0, self.last)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """The scales that codes stand for, float32, the same on every device."""
        steps = codes.long() - self.last + self.OCTAVE * self.exponent
        octave = torch.div(steps, self.OCTAVE, rounding_mode="floor")
        part = torch.tensor([2 ** (i / self.OCTAVE) for i in range(self.OCTAVE)], device=codes.device)
        return torch.ldexp(part[steps - self.OCTAVE * octave], octave)

    def up(self, scale: torch.Tensor) -> torch.Tensor:
        """``scale`` rounded up."""
        return self.values(self.codes(scale))


LOGARITHMIC = ("log", "table")  # forms of which scales are


def log_scale(weight: torch.Tensor, layer: LayerPlan) -> LogScale:
    """The logarithmic scales of a linear [out, in] of form "log", by the widest range of what is not kept."""
    size = min(layer.group_size, weight.shape[1])
    rest = weight if layer.keep is None else weight.masked_fill(torch.as_tensor(layer.keep, device=weight.device), 0.0)
    widest = [float((part.amax(1).clamp(min=0) - part.amin(1).clamp(max=0)).max()) for part in rest.split(size, dim=1)]
    tops = 2.0 ** code_bits(layer, weight.shape[1]) - 1
    return LogScale.over(max(width / top for width, top in zip(widest, tops, strict=True)), layer.scale_bits)


def ends(columns: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest weight along ``dim``, which is kept, with 0 between them; −1 and 1 where all are 0."""
    low, high = columns.amin(dim, keepdim=True).clamp(max=0), columns.amax(dim, keepdim=True).clamp(min=0)
    zeros = low == high
    return torch.where(zeros, -1.0, low), torch.where(zeros, 1.0, high)


def around_zero(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The range [−h, h] that holds [low, high]; one without negative weights stays."""
    high = torch.maximum(-low, high)
    return torch.where(low < 0, -high, low), high


def middle(bits):
    """The zero point of grids that store none: the codes' middle, the upper of the two."""
    return 2**(bits - 1)


def without_kept(columns: torch.Tensor, keep: torch.Tensor | None, dim: int = 0) -> torch.Tensor:
    """``columns`` with the mean of the others along ``dim`` in the place of kept weights, which then stretch no range.

    keep: bool, of the same shape, or None.
    """
    if keep is None or not keep.any():
        return columns
    others = (~keep).sum(dim, keepdim=True).clamp(min=1)
    return torch.where(keep, torch.where(keep, 0.0, columns).sum(dim, keepdim=True) / others, columns)


def integer_grid(low: torch.Tensor, high: torch.Tensor, top: int | torch.Tensor, *, stored: bool = True,
                 symmetric: bool = False, logs: LogScale | None = None) -> Grid:
    """The grid over [low, high], low ≤ 0 ≤ high.

    stored: scales at fp16, or as ``logs`` has them, and zero points among the codes; symmetric: the zero point in the
    middle whatever the range.
    """
    scale = (high - low) / top
    if stored:
        scale = fp16_up(scale) if logs is None else logs.up(scale)
    zero = torch.zeros_like(scale) + (top + 1) / 2 if symmetric else (-low / nonzero(scale)).round_()
    return Grid(scale, clip(zero, top) if stored else zero, top)


def float_grid(low: torch.Tensor, high: torch.Tensor, top: int, *, stored: bool = False) -> FloatGrid:
    """The grid with a float zero point over [low, high]; stored: scale and zero point at fp16.

    All zeros (scale 0) decode to 0 whatever the zero point is: it takes the middle, which disturbs its tile least.
    """
    scale = (high - low) / top
    scale = fp16_up(scale) if stored else scale
    zero = torch.where(scale == 0, top / 2, -low / nonzero(scale))
    return FloatGrid(scale, zero.half().float() if stored else zero, top)


def sign_grid(weight: torch.Tensor, *, published: bool = False, stored: bool = True) -> SignGrid:
    """The 1-bit grid of each row of ``weight`` [out, g], [out, 1]: mean ± mean|w − mean|, published mean ± mean|w|.

    stored: mean and scale at fp16.
    """
    mean = weight.mean(1, keepdim=True)
    mean = mean.half().float() if stored else mean
    scale = (weight if published else weight - mean).abs().mean(1, keepdim=True)
    scale = scale.half().float() if stored else scale
    if stored and not torch.isfinite(mean + scale).all():
        raise ValueError("a 1-bit group's mean or scale exceeds 65504, the largest fp16 number; the weights are broken")
    return SignGrid(scale, mean, published=published)


TOGETHER = 2**24  # weights times factors that a GPU tries in one go; on a CPU one factor stays in its cache


def best_range(columns: torch.Tensor, low: torch.Tensor, high: torch.Tensor, top: int, *, factors: tuple[float, ...],
               power: float, weights: torch.Tensor | None = None, **how) -> Grid:
    """The grid over ``factor`` · [low, high] of least Σ weights · |ŵ − w|^power, row by row; the first of equals.

    columns: a group [g, out]; low, high: [1, out]; weights: [g, out] or None = 1; ``how`` as in :func:`integer_grid`.
    Returns scale and zero point [out].
    """
    shares = torch.tensor(factors, device=low.device)[:, None]
    every = integer_grid(low * shares, high * shares, top, **how)  # [factors, out]
    if len(factors) == 1:
        return Grid(every.scale[0], every.zero[0], top)
    errors = []
    together = max(1, TOGETHER // columns.numel()) if columns.is_cuda else 1
    for scale, zero in zip(every.scale.split(together), every.zero.split(together)):
        grid = Grid(scale[:, None], zero[:, None], top)
        error = grid.values_(grid.codes(columns)).sub_(columns)  # [factors, g, out]
        error = error.square_() if power == 2 else error.abs_().pow_(power)
        errors.append((error if weights is None else error.mul_(weights)).sum(1))
    best = torch.cat(errors).argmin(0, keepdim=True)  # the first of equals
    return Grid(every.scale.gather(0, best)[0], every.zero.gather(0, best)[0], top)


def spread_groups(values: torch.Tensor, group_size: int, width: int) -> torch.Tensor:
    """Repeat per-group values [out, G] over their columns: [out, width]."""
    return values.repeat_interleave(group_size, dim=1)[:, :width]


def grouped(weight: torch.Tensor, group_size: int, zero_pad: bool = False) -> torch.Tensor:
    """View [out, in] as [out, G, g]; a ragged last group is filled with its own last column, or zeros if asked."""
    rest = -weight.shape[1] % group_size
    if rest:
        tail = torch.zeros_like(weight[:, :1]) if zero_pad else weight[:, -1:]
        weight = torch.cat([weight, tail.expand(-1, rest)], dim=1)
    return weight.reshape(weight.shape[0], -1, group_size)
