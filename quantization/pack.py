"""Pack a quantized linear into the arrays that would be stored, and back.

This is what the accountant counts: ``sum(a.nbytes) * 8 == layer_bits(plan, shape)``.
Little-endian bit order, element-major: the b bits of each code follow one another, row by row.
"""

import numpy as np
import torch

from core.types import LayerPlan, Stored
from quantization.bits import MAP_BITS, column_number_bits, csr_widths, group_widths, index_bits
from quantization.rtn import encode


def pack_bits(values: np.ndarray, bits) -> np.ndarray:
    """Pack non-negative integers into uint8, ``bits`` each (one number, or one per value)."""
    values = values.astype(np.uint64).ravel()
    width = np.broadcast_to(np.asarray(bits, dtype=np.int64), values.shape).ravel()
    if not len(values) or not width.max():
        return np.zeros(0, dtype=np.uint8)
    planes = (values[:, None] >> np.arange(width.max(), dtype=np.uint64)) & np.uint64(1)
    used = np.arange(width.max())[None, :] < width[:, None]
    return np.packbits(planes.astype(np.uint8)[used], bitorder="little")


def unpack_bits(packed: np.ndarray, bits, count: int) -> np.ndarray:
    """Undo :func:`pack_bits` for ``count`` values: int64 [count]."""
    width = np.broadcast_to(np.asarray(bits, dtype=np.int64), (count,))
    if not count or not width.max():
        return np.zeros(count, dtype=np.int64)
    used = np.arange(width.max())[None, :] < width[:, None]
    planes = np.zeros(used.shape, dtype=np.int64)
    planes[used] = np.unpackbits(packed, bitorder="little")[: int(width.sum())]
    return (planes << np.arange(width.max())).sum(1)


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


def raw16(values: torch.Tensor) -> np.ndarray:
    half = values if values.element_size() == 2 else values.bfloat16()
    return half.contiguous().view(torch.uint8).numpy().ravel()


def from16(raw: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    stored = dtype if dtype.itemsize == 2 else torch.bfloat16
    return torch.tensor(raw).view(stored).to(dtype)


def pack_kept(weight: torch.Tensor, keep: np.ndarray) -> dict[str, np.ndarray]:
    kept = {"kept": raw16(weight[torch.as_tensor(keep)])}
    kind = index_bits(keep)[1]
    if kind == "columns":
        return kept | {"columns": np.packbits(keep[0], bitorder="little")}
    if kind == "bitmap":
        return kept | {"bitmap": np.packbits(keep.ravel(), bitorder="little")}
    counts = keep.sum(1)
    count_bits, column_bits = csr_widths(counts, keep.shape[1])
    return kept | {"count_bits": np.array([count_bits], dtype=np.uint8), "row_counts": pack_bits(counts, count_bits),
                   "column_numbers": pack_bits(np.nonzero(keep)[1], column_bits)}


def unpack_mask(arrays: dict[str, np.ndarray], shape) -> np.ndarray:
    rows, cols = shape
    if "columns" in arrays:
        return np.tile(np.unpackbits(arrays["columns"], bitorder="little")[:cols].astype(bool), (rows, 1))
    if "bitmap" in arrays:
        return np.unpackbits(arrays["bitmap"], bitorder="little")[: rows * cols].astype(bool).reshape(shape)
    counts = unpack_bits(arrays["row_counts"], int(arrays["count_bits"][0]), rows)
    mask = np.zeros(shape, dtype=bool)
    columns = unpack_bits(arrays["column_numbers"], csr_widths(counts, cols)[1], int(counts.sum()))
    mask[np.repeat(np.arange(rows), counts), columns] = True
    return mask


