"""Linears that were solved before, in the form that the plan bought (quantization/menu.py)."""

from __future__ import annotations

from core.lazy import torch
from core.registry import quantizer
from core.types import Aid, LayerPlan, Stored


@quantizer("library", needs=("library",))
def library(weight: torch.Tensor, layer: LayerPlan, aid: Aid) -> Stored:
    """The linear as it lies in the library."""
    return aid.library(aid.fqn)
