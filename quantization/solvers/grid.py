
from dataclasses import dataclass

import torch

from core.types import LayerPlan


@dataclass(frozen=True)
class Encoded:
    """A linear as it is stored: codes and what turns them back into weights."""

    codes: torch.Tensor  # uint8 [out, in]
    scale: torch.Tensor  # float32 [out, G], exactly representable in scale_bits
    zero: torch.Tensor  # float32 [out, G]: integer zero point, or the minimum in the float-zero grid
    group_size: int
    float_zero: bool

    def decode(self) -> torch.Tensor:
        """Return ŵ, float32 [out, in]."""
        scale, zero = (spread_groups(t, self.group_size, self.codes.shape[1]) for t in (self.scale, self.zero))
        codes = self.codes.float()
        return codes * scale + zero if self.float_zero else (codes - zero) * scale


def spread_groups(values: torch.Tensor, group_size: int, width: int) -> torch.Tensor:
    """Repeat per-group values [out, G] over their columns: [out, width]."""
    return values.repeat_interleave(group_size, dim=1)[:, :width]


def fp16_up(value: torch.Tensor) -> torch.Tensor:
    """Round positive float32 up to the next fp16 number, returned as float32."""
    half = value.half()
    if torch.isinf(half).any():
        raise ValueError("a group's scale exceeds 65504, the largest fp16 number; the weights are broken")
    low = half.float() < value
    return torch.where(low, (half.view(torch.int16) + 1).view(torch.float16), half).float()


def grouped(weight: torch.Tensor, group_size: int, zero_pad: bool = False) -> torch.Tensor:
    """View [out, in] as [out, G, g]; a ragged last group is filled with its own last column, or zeros if asked."""
    rest = -weight.shape[1] % group_size
    if rest:
        tail = torch.zeros_like(weight[:, :1]) if zero_pad else weight[:, -1:]
        weight = torch.cat([weight, tail.expand(-1, rest)], dim=1)
    return weight.reshape(weight.shape[0], -1, group_size)


def encode(weight: torch.Tensor, plan: LayerPlan, *, float_zero: bool = False, zero_pad: bool = False) -> Encoded:
    """Quantize float32 ``weight`` [out, in] by round-to-nearest under ``plan`` (bits of 1..8, or group_bits)."""
    blocks = grouped(weight, plan.group_size, zero_pad)
    top = _top_code(plan, blocks.shape[1], weight.device)  # [1, G]
    low, high = blocks.amin(2), blocks.amax(2)
    if float_zero:
        scale, zero = (high - low) / top, low
        codes = ((blocks - low[..., None]) / _nonzero(scale)[..., None]).round()
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = fp16_up((high - low) / top)
        zero = (-low / _nonzero(scale)).round().clamp(min=0).minimum(top)
        codes = (blocks / _nonzero(scale)[..., None]).round() + zero[..., None]
    codes = codes.clamp(min=0).minimum(top[..., None]).to(torch.uint8)
    return Encoded(codes.reshape(weight.shape[0], -1)[:, : weight.shape[1]], scale, zero, plan.group_size, float_zero)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 1.0, scale)  # a group of zeros: any divisor gives code = zero point


def _top_code(plan: LayerPlan, groups: int, device) -> torch.Tensor:
    bits = torch.full((1, groups), plan.bits) if plan.group_bits is None else torch.as_tensor(plan.group_bits.astype("int64"))[None]
    if not ((bits >= 1) & (bits <= 8)).all():
        raise ValueError(f"round-to-nearest codes need 1 to 8 bits, got {sorted(set(bits.flatten().tolist()))}")
    return (2**bits - 1).float().to(device)


def dequantized(weight: torch.Tensor, plan: LayerPlan, **grid) -> torch.Tensor:
    """Return ŵ in the dtype of ``weight``, kept weights and 16-bit linears at 16 bits."""
    if plan.bits == 16 and plan.group_bits is None:
        return sixteen(weight)
    out = encode(weight.float(), plan, **grid).decode().to(weight.dtype)
    if plan.keep is not None:
        out = torch.where(torch.as_tensor(plan.keep, device=weight.device), sixteen(weight), out)
    return out


def sixteen(weight: torch.Tensor) -> torch.Tensor:
    """Return the weights as 16 bits store them: unchanged if already 16-bit, through bf16 otherwise."""
    return weight if weight.element_size() == 2 else weight.bfloat16().to(weight.dtype)
