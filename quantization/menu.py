"""The forms in which a linear may be stored, of which an allocator buys one for each: bits, groups, kept weights.

Every form has logarithmic scales (quantization/solvers/grid.py, LogScale), 8 bits less a group than fp16 and a 2-bit
zero point, so that finer groups cost little; and kept weights in 8 bits beside a coded index (quantization/bits.py), so
that one costs about 16 bits and not 29.  Which weights a form keeps is one ranking a linear and number of bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from core.lazy import torch
from core.storage import LOG_BITS
from core.types import LayerPlan
from quantization.bits import stored_grid


@dataclass(frozen=True)
class Form:
    """One way to store a linear."""

    bits: int
    group: int  # input columns that share a scale; 0 = the whole row
    share: float = 0.0  # of the linear's weights that is kept at 8 bits

    def layer(self, width: int, keep: np.ndarray | None) -> LayerPlan:
        """The plan of a linear with ``width`` inputs that keeps ``keep``."""
        return replace(stored_grid(self.bits, self.group or width, LOG_BITS), keep=keep, kept_bits=KEPT)

    @property
    def words(self) -> str:
        """As ``2 bits g48 0.4 %``."""
        kept = f" {100 * self.share:g} %" if self.share else ""
        return f"{self.bits} bits {f'g{self.group}' if self.group else 'row'}{kept}"


KEPT = 8  # bits of a kept weight
LEVELS = (2, 3, 4, 5, 6, 8)


def whole_bits(avg_bits: float) -> int:
    """The whole bits around which a budget's menu lies: 2 to 6."""
    return min(6, max(2, int(avg_bits)))


def forms(group_size: int, bits: int) -> tuple[Form, ...]:
    """The menu around ``bits`` and the common grid's group size g: these bits in whole rows and in groups of g, g/2 and
    g/3 (or g/4) with up to 1.6 % of kept weights; one level less in fine groups; the next two levels and 8 bits.
    """
    half = group_size // 2 if group_size % 2 == 0 else group_size
    least = next((group_size // part for part in (3, 4, 2) if group_size % part == 0), group_size)
    many = (0, .004, .008, .016)
    shares = [(bits, 0, many), (bits, group_size, many), (bits, half, many[:3]), (bits, least, many[:2])]
    if bits > LEVELS[0]:
        shares.append((LEVELS[LEVELS.index(bits) - 1], least, many[:2]))
    above = LEVELS[LEVELS.index(bits) + 1:]
    shares += [(above[0], group_size, (0, .004)), (above[0], half, (.004,))]
    shares += [(level, group_size, (0,)) for level in dict.fromkeys((*above[1:2], LEVELS[-1]))]
    return tuple(dict.fromkeys(Form(level, group, share) for level, group, of in shares for share in of))


def base_form(menu: tuple[Form, ...], bits: int) -> int:
    """Which form of a menu the linears before have: its own bits in groups smaller than the common ones, few kept."""
    kept = [form for form in menu if form.bits == bits and form.group and form.share]
    coarse = max(form.group for form in kept)
    near = [form for form in kept if form.group < coarse] or kept
    return menu.index(max(near, key=lambda form: (form.group, -form.share)))


def ranked_masks(score: torch.Tensor, shares: tuple[float, ...]) -> dict[float, np.ndarray | None]:
    """Bool [out, in] masks of the best of a linear's ``score`` float32 [out, in], by share; None for a share of 0."""
    most = max(1, round(max(shares) * score.numel()))
    order = torch.topk(score.flatten(), most).indices.cpu()
    masks: dict[float, np.ndarray | None] = {}
    for share in shares:
        count = round(share * score.numel())
        flags = torch.zeros(score.numel(), dtype=torch.bool)
        flags[order[:count]] = True
        masks[share] = flags.reshape(score.shape).numpy() if count else None
    return masks
