"""Round-to-nearest: the common grid, and the grid of the published TAQ script (quantization/solvers/grid.py).

Kept weights stretch no range, as in the solvers, but in the published W4A4 form, which rounds all weights and then puts
the kept ones back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.lazy import torch
from core.registry import quantizer
from core.types import LayerPlan
from quantization.bits import code_bits
from quantization.solvers.grid import (
    Grid,
    MinimumGrid,
    around_zero,
    grouped,
    integer_grid,
    log_scale,
    spread_groups,
    without_kept,
)
from quantization.solvers.kept import Float8, sixteen
from quantization.solvers.table import fit_table


@dataclass(frozen=True)
class Encoded:
    """A linear as round-to-nearest stores it: codes and what turns them back into weights."""

    codes: torch.Tensor  # uint8 [out, in]
    grid: Grid  # scales and zero points (or minima) float32 [out, G, 1], scales exactly as they are stored
    group_size: int
    more: dict[str, torch.Tensor]  # what is stored besides: the exponent of the scales, a table

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What is stored, as arrays by name; scales and zero points [out, G]."""
        return {"codes": self.codes, "scale": self.grid.scale[..., 0], "zero": self.grid.zero[..., 0]} | self.more

    def decode(self) -> torch.Tensor:
        """Return ŵ, float32 [out, in]."""
        width = self.codes.shape[1]
        scale, zero = (spread_groups(t[..., 0], self.group_size, width) for t in (self.grid.scale, self.grid.zero))
        return replace(self.grid, scale=scale, zero=zero).values_(self.codes.float())


def encode(weight: torch.Tensor, plan: LayerPlan, *, float_zero: bool = False, zero_pad: bool = False,
           kept_in_range: bool = False) -> Encoded:
    """Quantize float32 ``weight`` [out, in] by round-to-nearest under ``plan`` (bits of 1..8, or group_bits)."""
    groups = grouped(weight, plan.group_size, zero_pad)
    keep = None if plan.keep is None or kept_in_range else torch.as_tensor(plan.keep, device=weight.device)
    keep = None if keep is None else grouped(keep, plan.group_size)
    inside = without_kept(groups, keep, dim=2)
    bits = torch.as_tensor(code_bits(plan, weight.shape[1]), device=weight.device)
    if not ((bits >= 1) & (bits <= 8)).all():
        raise ValueError(f"round-to-nearest codes need 1 to 8 bits, got {sorted(set(bits.tolist()))}")
    top, low, high = (2**bits - 1).float()[:, None], inside.amin(2, keepdim=True), inside.amax(2, keepdim=True)
    more = {}
    if plan.form == "table":
        table = fit_table(weight, plan)
        importance = grouped(table.importance[None], plan.group_size, zero_pad=True)  # none where columns are filled in
        grid, more = table.fitted(groups, None if keep is None else ~keep, importance), table.parts
    elif float_zero:
        grid = MinimumGrid((high - low) / top, low, top)
    else:
        logs = log_scale(weight, plan) if plan.form == "log" else None
        low, high, symmetric = low.clamp(max=0), high.clamp(min=0), plan.zero_bits == 0
        low, high = around_zero(low, high) if symmetric else (low, high)
        grid, more = integer_grid(low, high, top, logs=logs, symmetric=symmetric), logs.parts if logs else {}
    codes = grid.codes(groups).to(torch.uint8).reshape(weight.shape[0], -1)[:, : weight.shape[1]]
    return Encoded(codes, grid, group_size=plan.group_size, more=more)


def dequantized(weight: torch.Tensor, plan: LayerPlan, **grid) -> torch.Tensor:
    """Return ŵ in the dtype of ``weight``, kept weights as the plan has them and 16-bit linears at 16 bits."""
    if plan.bits == 16 and plan.group_bits is None:
        return sixteen(weight)
    values = encode(weight.float(), plan, **grid).decode().to(weight.dtype)
    if plan.keep is not None:
        float8 = Float8.of(weight, plan)
        kept = sixteen(weight) if float8 is None else float8.through(weight)
        values = torch.where(torch.as_tensor(plan.keep, device=weight.device), kept, values)
    return values


@quantizer("rtn", 2)
def rtn(weight: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    """Common round-to-nearest: int-zero grid, fp16 scales."""
    return dequantized(weight, plan)


@quantizer("rtn-full-range")
def rtn_full_range(weight: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    """The same, kept weights in the range of their group: the published W4A4 form."""
    return dequantized(weight, plan, kept_in_range=True)


@quantizer("rtn-float", 2)
def rtn_float(weight: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    """Round-to-nearest of the published TAQ script, a ragged last group measured on its own columns."""
    return dequantized(weight, plan, float_zero=True)


@quantizer("rtn-float-padded", 2)
def rtn_float_padded(weight: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    """The same with the script's quirk: a ragged last group padded with zeros, which drags min and max toward 0."""
    return dequantized(weight, plan, float_zero=True, zero_pad=True)
