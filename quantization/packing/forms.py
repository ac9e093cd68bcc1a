"""Any quantized linear as the arrays that would be stored, and back, whatever its form.

This is what the accountant counts: ``8 * sum(a.nbytes) == layer_bits(layer, shape)`` for every form of quantization/bits.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from core.errors import UserError
from core.lazy import torch
from core.types import LayerPlan, Stored
from quantization.bits import BILEVEL_ROWS, MAP_BITS, column_bits, column_number_bits, group_widths
from quantization.packing.bytes import from16, pack_bits, pack_kept, raw16, unpack_bits, unpack_mask
from quantization.solvers.bnb import eight_bit, four_bit
from quantization.solvers.codebook import _decode
from quantization.solvers.grid import encode, spread_groups
from quantization.solvers.slim import decode
from quantization.solvers.spqr_fit import Level


def packed(found: Stored) -> dict[str, np.ndarray]:
    """The stored arrays, uint8, of what a quantizer that reads data left."""
    return SOLVED[found.layer.form](found)


def packed_alone(weight: torch.Tensor, layer: LayerPlan, quantizer: str) -> dict[str, np.ndarray]:
    """The stored arrays, uint8, of a quantizer that reads the weight alone."""
    if layer.form == "bnb4":
        codes, maxima, _ = four_bit(weight, quantizer.removeprefix("bnb-"))
        return {"codes": codes.numpy().ravel(), "maxima": maxima.float().numpy().view(np.uint8).ravel()}
    if layer.form == "bnb8":
        codes, maxima, _ = eight_bit(weight)
        return {"codes": codes.numpy().view(np.uint8).ravel(), "maxima": maxima.float().numpy().view(np.uint8).ravel()}
    return pack(weight, layer, float_zero=quantizer.startswith("rtn-float"))


def pack(weight: torch.Tensor, plan: LayerPlan, *, float_zero: bool = False) -> dict[str, np.ndarray]:
    """Quantize ``weight`` [out, in] by round-to-nearest and return its stored arrays by name, all uint8."""
    if plan.bits == 16 and plan.group_bits is None:
        return {"weight": raw16(weight)}
    enc = encode(weight.float(), plan, float_zero=float_zero)
    return _arrays(plan, enc.codes, enc.scale, enc.zero, weight)


def pack_stored(stored: Stored) -> dict[str, np.ndarray]:
    """The stored arrays of a linear that a solver left on the common grid (form "grid")."""
    parts = stored.parts
    return _arrays(stored.layer, parts["codes"], parts["scale"], parts["zero"], stored.values, parts.get("order"))


def _arrays(plan: LayerPlan, codes, scale, zero, weight, order=None) -> dict[str, np.ndarray]:
    rows, cols = codes.shape
    group = group_of_column(plan, cols, order)
    bits, zero_bits = _bits(plan, cols)
    arrays = {"codes": pack_bits(codes.numpy(), np.tile(bits[group], rows))}
    arrays["scale"] = (scale.half() if plan.scale_bits == 16 else scale).contiguous().numpy().view(np.uint8).ravel()
    whole = plan.zero_bits == 32  # a float32 zero point, or minimum
    arrays["zero"] = zero.contiguous().numpy().view(np.uint8).ravel() if whole else pack_bits(zero.numpy(), np.tile(zero_bits, rows))
    if plan.group_bits is not None:
        arrays["map"] = pack_bits(plan.group_bits.astype(np.int64) - 1, MAP_BITS)
    if plan.ordered:
        arrays["order"] = pack_bits(order.numpy(), column_number_bits(cols))
    if plan.keep is not None and plan.keep.any():
        arrays |= pack_kept(weight, plan.keep)
    return arrays


def unpack(arrays: dict[str, np.ndarray], plan: LayerPlan, shape, dtype: torch.dtype, *, float_zero: bool = False) -> torch.Tensor:
    """Rebuild ŵ [out, in] from the stored arrays."""
    rows, cols = shape
    if "weight" in arrays:
        return from16(arrays["weight"], dtype).reshape(shape)
    order = torch.tensor(unpack_bits(arrays["order"], column_number_bits(cols), cols)) if plan.ordered else None
    group = group_of_column(plan, cols, order)
    bits, zero_bits = _bits(plan, cols)
    groups = len(zero_bits)
    codes = torch.tensor(unpack_bits(arrays["codes"], np.tile(bits[group], rows), rows * cols).reshape(shape)).float()
    scale = torch.tensor(arrays["scale"].view(np.float16 if plan.scale_bits == 16 else np.float32).astype(np.float32)).reshape(rows, groups)
    zero = arrays["zero"].view(np.float32) if plan.zero_bits == 32 else unpack_bits(arrays["zero"], np.tile(zero_bits, rows), rows * groups)
    zero = torch.tensor(zero.astype(np.float32)).reshape(rows, groups)
    scale, zero = scale[:, group], zero[:, group]
    out = (codes * scale + zero if float_zero else (codes - zero) * scale).to(dtype)
    if "kept" in arrays:
        out[torch.tensor(unpack_mask(arrays, shape))] = from16(arrays["kept"], dtype)
    return out


def group_of_column(plan: LayerPlan, cols: int, order: torch.Tensor | None = None) -> np.ndarray:
    """The group of each column [in]; groups run over ``order`` where the columns were permuted."""
    place = np.arange(cols) if order is None else np.argsort(order.numpy())
    return place // plan.group_size


def _bits(plan: LayerPlan, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits of each group's codes and of its zero point, both [G]."""
    groups = len(group_widths(cols, plan.group_size))
    bits = np.full(groups, plan.bits) if plan.group_bits is None else plan.group_bits.astype(np.int64)
    return bits, bits if plan.zero_bits is None else np.full(groups, plan.zero_bits)


STATISTICS = ("scale_s", "scale_z", "zero_s", "zero_z")  # float32 [tiles, G]: scale = scale_s (code − scale_z), zero = zero_s (code − zero_z)


def pack_spqr(stored: Stored) -> dict[str, np.ndarray]:
    """The arrays that would be stored, all uint8: 8 × their bytes is what the accountant counts."""
    layer, parts = stored.layer, {name: part.cpu() for name, part in stored.parts.items()}
    if not all(torch.equal(parts[name].half().float(), parts[name]) for name in STATISTICS):
        raise UserError("the published SpQR arithmetic holds its second level in float32, which is not what is stored; quantize without it to pack")
    arrays = {name: pack_bits(parts[name].numpy(), bits)
              for name, bits in (("codes", layer.bits), ("scale_codes", layer.scale_bits), ("zero_codes", layer.zero_bits))}
    arrays["statistics"] = torch.stack([parts[name] for name in STATISTICS]).half().numpy().view(np.uint8).ravel()
    if layer.ordered:
        arrays["order"] = pack_bits(parts["perm"].numpy(), column_number_bits(stored.values.shape[1]))
    return arrays if layer.keep is None else arrays | pack_kept(stored.values.cpu(), layer.keep)


def unpack_spqr(arrays: dict[str, np.ndarray], layer: LayerPlan, shape: tuple[int, int]) -> torch.Tensor:
    """Rebuild ŵ float32 [out, in] from the stored arrays."""
    rows, cols = shape
    groups, tiles = len(group_widths(cols, layer.group_size)), -(-rows // BILEVEL_ROWS)

    def numbers(name, bits, *size):
        return torch.tensor(unpack_bits(arrays[name], bits, math.prod(size))).reshape(size)

    stats = torch.tensor(arrays["statistics"].view(np.float16).astype(np.float32)).reshape(4, tiles, groups)
    decoded = []
    for name, bits, step, zero in (("scale_codes", layer.scale_bits, *stats[:2]), ("zero_codes", layer.zero_bits, *stats[2:])):
        codes = numbers(name, bits, rows, groups)
        decoded.append(torch.stack([Level(codes[:, g], step[:, g], zero[:, g]).decode() for g in range(groups)], dim=1))
    scale, zero = (spread_groups(t, layer.group_size, cols) for t in decoded)
    out = scale * (numbers("codes", layer.bits, rows, cols).float() - zero)
    if layer.ordered:
        out = out[:, torch.argsort(numbers("order", column_number_bits(cols), cols))]
    if "kept" in arrays:
        out[torch.tensor(unpack_mask(arrays, shape))] = from16(arrays["kept"], torch.float32)
    return out


def pack_slim(stored: Stored) -> dict[str, np.ndarray]:
    """The arrays that are stored, all uint8: codes, fp16 scales, zero points (b bits), fp16 means of 1-bit groups, the bits' map."""
    layer, parts = stored.layer, {k: v.cpu().numpy() for k, v in stored.parts.items()}
    if layer.scale_bits != 16:
        raise UserError("the published form of SliM-LLM has float32 scales and three codes at 1 bit; only the corrected form can be packed")
    rows, width = parts["codes"].shape
    single, bits = layer.group_bits == 1, layer.group_bits.astype(np.int64)
    return {"codes": pack_bits(parts["codes"], np.tile(column_bits(layer, width), rows)),
            "scale": parts["scale"].astype(np.float16).view(np.uint8).ravel(),
            "zero": pack_bits(parts["zero"][:, ~single], np.tile(bits[~single], rows)),
            "mean": np.ascontiguousarray(parts["zero"][:, single].astype(np.float16)).view(np.uint8).ravel(),
            "map": pack_bits(bits - 1, MAP_BITS)}


def unpack_slim(arrays: dict[str, np.ndarray], layer: LayerPlan, shape: tuple[int, int]) -> torch.Tensor:
    """Rebuild ŵ float32 [out, in] from the stored arrays."""
    rows, width = shape
    groups = len(group_widths(width, layer.group_size))
    bits = unpack_bits(arrays["map"], MAP_BITS, groups) + 1
    layer, single = replace(layer, group_bits=bits.astype(np.uint8)), bits == 1
    codes = unpack_bits(arrays["codes"], np.tile(column_bits(layer, width), rows), rows * width).reshape(shape)
    zero = np.zeros((rows, groups), dtype=np.float32)
    zero[:, ~single] = unpack_bits(arrays["zero"], np.tile(bits[~single], rows), rows * int((~single).sum())).reshape(rows, -1)
    zero[:, single] = arrays["mean"].view(np.float16).reshape(rows, -1)
    scale = arrays["scale"].view(np.float16).astype(np.float32).reshape(rows, groups)
    return decode({"codes": torch.tensor(codes), "scale": torch.tensor(scale), "zero": torch.tensor(zero)}, layer)


def pack_codebook(stored: Stored) -> dict[str, np.ndarray]:
    """The arrays that are stored, all uint8; their bytes are what quantization/bits.py counts."""
    arrays = {"codes": pack_bits(stored.parts["codes"].numpy(), stored.layer.bits),
              "centers": stored.parts["centers"].contiguous().numpy().view(np.uint8).ravel()}
    return arrays if stored.layer.keep is None else arrays | pack_kept(stored.values, stored.layer.keep)


def unpack_codebook(arrays: dict[str, np.ndarray], layer: LayerPlan, shape: tuple[int, int]) -> torch.Tensor:
    """Rebuild ŵ float32 [out, in]; of ``layer`` only the bits are read."""
    rows, cols = shape
    parts = {"codes": torch.tensor(unpack_bits(arrays["codes"], layer.bits, rows * cols).reshape(shape)),
             "centers": torch.tensor(arrays["centers"].view(np.float16)).reshape(rows, -1)}
    if "kept" not in arrays:
        return _decode(parts, torch.zeros(shape, dtype=torch.bool))
    parts["kept"] = from16(arrays["kept"], torch.bfloat16)
    return _decode(parts, torch.tensor(unpack_mask(arrays, shape)))


SOLVED = {"grid": pack_stored, "bilevel": pack_spqr, "slim": pack_slim, "codebook": pack_codebook}
