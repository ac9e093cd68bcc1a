"""Linears that hold what is stored and make their weights of it when they are used: resident memory is the stored bits.

Where one number of bits and whole groups make it possible the codes are unpacked by tensor operations on the linear's
own device; all else goes through quantization/packing/forms.py.  Both give the same bits of ŵ.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from core.types import LayerPlan
from quantization.bits import MAP_BITS
from quantization.packing.bytes import unpack_bits, unpack_mask
from quantization.packing.forms import kept_of, points, scales_of, unpacked
from quantization.solvers.grid import LOGARITHMIC, LogScale, middle


def unpack_codes(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Codes [count], uint8, of ``packed`` uint8 bytes that hold ``bits`` (1 to 8) each, the lowest bits first."""
    if bits == 8:
        return packed[:count]
    mask = 2**bits - 1
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        return ((packed[:, None] >> shifts) & mask).flatten()[:count]
    whole = nn.functional.pad(packed, (0, -len(packed) % bits)).view(-1, bits).long()  # 8 codes in ``bits`` bytes
    word = whole[:, 0].clone()
    for byte in range(1, bits):
        word |= whole[:, byte] << (8 * byte)
    shifts = torch.arange(0, 8 * bits, bits, device=packed.device)
    return ((word[:, None] >> shifts) & mask).to(torch.uint8).flatten()[:count]


def is_plain(layer: LayerPlan) -> bool:
    """Whether a linear is one integer grid of one number of bits over columns as they stand."""
    return layer.form in ("grid", *LOGARITHMIC) and layer.group_bits is None and not layer.ordered


def grid_of(arrays: dict[str, torch.Tensor], layer: LayerPlan,
            shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8 [out, in], scales and zero points (or minima) float32 [out, G] of a plain linear; of a table, whose
    codes have no zero point, these mean nothing.
    """
    rows, cols = shape
    groups = -(-cols // layer.group_size)
    codes = unpack_codes(arrays["codes"], layer.bits, rows * cols).view(rows, cols)
    if layer.form in LOGARITHMIC:
        steps = unpack_codes(arrays["scale"], layer.scale_bits, rows * groups)
        scale = scales_of(layer, LogScale(int(arrays["exponent"].view(torch.int8)[0]), layer.scale_bits), steps)
    else:
        scale = arrays["scale"].view(torch.float16 if layer.scale_bits == 16 else torch.float32).float()
    if layer.zero_bits == 32:
        zero = arrays["zero"].view(torch.float32)
    elif layer.zero_bits == 0:
        zero = torch.full((rows, groups), float(middle(layer.bits)), device=codes.device)
    else:
        zero = unpack_codes(arrays["zero"], layer.bits if layer.zero_bits is None else layer.zero_bits,
                            rows * groups).float()
    return codes, scale.view(rows, groups), zero.view(rows, groups)


def decoded(arrays: dict[str, torch.Tensor], layer: LayerPlan, shape: tuple[int, int], *, dtype: torch.dtype,
            kept_dtype: torch.dtype, quantizer: str = "") -> torch.Tensor:
    """Ŵ [out, in] in ``dtype`` of a linear's stored arrays, uint8."""
    if not is_plain(layer):
        device = next(iter(arrays.values())).device
        plain = {name: array.cpu().numpy() for name, array in arrays.items()}
        values = unpacked(plain, layer, shape, kept_dtype, quantizer=quantizer, dtype=dtype)
        return values.to(dtype).to(device)
    codes, scale, zero = grid_of(arrays, layer, shape)
    width = scale.shape[1] * layer.group_size
    whole = nn.functional.pad(codes, (0, width - shape[1])).view(*scale.shape, -1)
    grid = points(scale[..., None], zero[..., None], arrays.get("table"), minimum=layer.zero_bits == 32)
    values = grid.values_(whole.float()).flatten(1)[:, :shape[1]].to(dtype)
    if "kept" in arrays:
        plain = {name: array.cpu().numpy() for name, array in arrays.items()}
        at = torch.tensor(np.flatnonzero(unpack_mask(plain, shape)), device=values.device)
        values = values.contiguous()
        values.view(-1)[at] = kept_of(plain, kept_dtype).to(values.device, dtype)
    return values


class PackedLinear(nn.Linear):
    """A linear of stored arrays, held as uint8 buffers under their names; ``bias`` [out] if there is one."""

    def __init__(self, layer: LayerPlan, shape: tuple[int, int], arrays: dict[str, torch.Tensor], *,
                 dtype: torch.dtype, kept_dtype: torch.dtype, quantizer: str = "",
                 bias: torch.Tensor | None = None):
        nn.Module.__init__(self)  # no weight is made
        self.layer, self.shape, self.dtype, self.kept_dtype, self.quantizer = layer, shape, dtype, kept_dtype, quantizer
        self.out_features, self.in_features = shape
        self.names = list(arrays)
        for name, array in arrays.items():
            self.register_buffer(name, array)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> torch.Tensor:
        """Ŵ [out, in], decoded now."""
        return decoded({name: getattr(self, name) for name in self.names}, self.layer, self.shape, dtype=self.dtype,
                       kept_dtype=self.kept_dtype, quantizer=self.quantizer)

    def dense(self) -> nn.Linear:
        """A plain linear of the same weights."""
        linear = nn.Linear(1, 1, bias=self.bias is not None)
        linear.in_features, linear.out_features = self.in_features, self.out_features
        linear.weight = nn.Parameter(self.weight, requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias, requires_grad=False)
        return linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.layer.bits}"


def bits_of_groups(stored: torch.Tensor, groups: int) -> np.ndarray:
    """Bits of each column group, uint8 [G], of a linear's stored map."""
    return (unpack_bits(stored.numpy(), MAP_BITS, groups) + 1).astype(np.uint8)
