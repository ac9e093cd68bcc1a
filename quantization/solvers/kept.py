"""Kept weights: at 16 bits in the model's own dtype, or as 8-bit floats (``LayerPlan.kept_bits``)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from core.lazy import torch
from core.types import LayerPlan


@dataclass(frozen=True)
class Float8:
    """Kept weights of one linear in 8 bits: E4M3 floats (4 bits of exponent, 3 of fraction) times 2^exponent."""

    exponent: int
    LARGEST: ClassVar[float] = 448.0

    @classmethod
    def over(cls, largest: float) -> Float8:
        """For weights up to three times the largest: a kept weight takes up what earlier columns lost."""
        return cls(max(-128, math.ceil(math.log2(largest)) - 7) if largest > 0 else 0)

    @classmethod
    def of(cls, weight: torch.Tensor, layer: LayerPlan) -> Float8 | None:
        """That of a linear's ``weight`` [out, in] under its plan; None where it keeps none, or at 16 bits."""
        if layer.kept_bits == 16 or layer.keep is None or not layer.keep.any():
            return None
        return cls.over(float(weight[torch.as_tensor(layer.keep, device=weight.device)].abs().max()))

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What is stored of a linear besides its kept weights."""
        return {"kept_exponent": torch.tensor([self.exponent], dtype=torch.int8)}

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest floats, float8; the largest one for what is larger than all."""
        scaled = weight.float() * 2.0**-self.exponent
        return scaled.clamp_(-self.LARGEST, self.LARGEST).to(torch.float8_e4m3fn)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """The weights that codes stand for, float32."""
        return codes.float() * 2.0**self.exponent

    def through(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` in its own dtype, rounded to what is stored."""
        return self.values(self.codes(weight)).to(weight.dtype)


def sixteen_bit(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a model of ``dtype`` stores weights at 16 bits: its own, or bf16 if that has more."""
    return dtype if dtype.itemsize == 2 else torch.bfloat16


def through(weight: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """``weight`` in its own dtype, rounded to what ``dtype`` can hold; None = bf16."""
    return weight.to(torch.bfloat16 if dtype is None else dtype).to(weight.dtype)


def sixteen(weight: torch.Tensor) -> torch.Tensor:
    """Return the weights as 16 bits store them: unchanged if already 16-bit, through bf16 otherwise."""
    return through(weight, sixteen_bit(weight.dtype))


def kept_values(values: torch.Tensor, keep, dtype: torch.dtype | None,
                float8: Float8 | None = None) -> dict[str, torch.Tensor]:
    """What is stored of the kept weights of ``values`` [out, in]: {"kept": [nnz], ...}, or nothing if none is kept.

    keep: bool [out, in] or None; dtype: their 16-bit dtype, None = bf16; float8: in its place, 8 bits.
    """
    if keep is None or not keep.any():
        return {}
    kept = values[torch.as_tensor(keep, device=values.device)]
    if float8 is not None:
        return {"kept": float8.codes(kept)} | float8.parts
    return {"kept": kept.to(torch.bfloat16 if dtype is None else dtype)}
