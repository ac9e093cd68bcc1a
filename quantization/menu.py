"""The forms in which a linear may be stored, of which an allocator buys one for each: bits, groups, kept weights.

Every form has logarithmic scales (quantization/solvers/grid.py, LogScale): 8 bits less a group than fp16 and a 2-bit
zero point, so that finer groups cost little.  Which weights a form keeps is one ranking a linear and number of bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.lazy import torch
from core.storage import LOG_BITS
from core.types import LayerPlan


@dataclass(frozen=True)
class Form:
    """One way to store a linear."""

    bits: int
    group: int  # input columns that share a scale; 0 = the whole row
    share: float = 0.0  # of the linear's weights that is kept at 16 bits

    def layer(self, width: int, keep: np.ndarray | None) -> LayerPlan:
        """The plan of a linear with ``width`` inputs that keeps ``keep``."""
        return LayerPlan(self.bits, self.group or width, scale_bits=LOG_BITS, form="log", keep=keep)

    @property
    def words(self) -> str:
        """As ``2 bits g48 0.4 %``."""
        kept = f" {100 * self.share:g} %" if self.share else ""
        return f"{self.bits} bits {f'g{self.group}' if self.group else 'row'}{kept}"


def forms(group_size: int) -> tuple[Form, ...]:
    """The menu around the common grid's group size g: 2 and 3 bits in groups of g, g/2 and g/3 or g/4 and in whole
    rows, with up to 1.6 % of kept weights; 4, 5, 6 and 8 bits in groups of g.
    """
    half = group_size // 2 if group_size % 2 == 0 else group_size
    least = next((group_size // part for part in (3, 4, 2) if group_size % part == 0), group_size)
    shares = {(2, 0): (0, .004), (2, group_size): (0, .002, .004, .008), (2, half): (0, .002, .004),
              (2, least): (0, .002, .004, .016), (3, group_size): (0, .002, .004), (3, half): (0, .004),
              (3, least): (.008,), (4, group_size): (0, .004), (5, group_size): (0,), (6, group_size): (0,),
              (8, group_size): (0,)}
    return tuple(dict.fromkeys(Form(bits, group, share) for (bits, group), of in shares.items() for share in of))


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
