"""Round-to-nearest as a quantizer: the common grid, and the grid of the published TAQ script (quantization/solvers/grid.py)."""

from __future__ import annotations

from core.lazy import torch
from core.registry import quantizer
from core.types import LayerPlan
from quantization.solvers.grid import dequantized


@quantizer("rtn")
def rtn(weight: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    """Common round-to-nearest: int-zero grid, fp16 scales."""
    return dequantized(weight, plan)


@quantizer("rtn-float")
def rtn_float(weight: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    """Round-to-nearest of the published TAQ script, a ragged last group measured on its own columns."""
    return dequantized(weight, plan, float_zero=True)


@quantizer("rtn-float-padded")
def rtn_float_padded(weight: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    """The same with the script's quirk: a ragged last group padded with zeros, which drags min and max toward 0."""
    return dequantized(weight, plan, float_zero=True, zero_pad=True)
