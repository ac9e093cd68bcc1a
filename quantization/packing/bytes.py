"""Integers, 16-bit values and masks as bytes, and back.  Little-endian bit order, element-major."""

from __future__ import annotations

import numpy as np

from core.lazy import torch
from quantization.bits import csr_widths, index_bits, low_bits


def pack_bits(values: np.ndarray, bits) -> np.ndarray:
    """Pack non-negative integers into uint8, ``bits`` each (one number, or one per value)."""
    flat = values.ravel()
    width = np.broadcast_to(np.asarray(bits, dtype=np.int64), flat.shape)
    if not len(flat) or not width.max():
        return np.zeros(0, dtype=np.uint8)
    if width.min() == width.max() <= 8:  # nearly always, and ten times as fast
        planes = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1, count=int(width[0]), bitorder="little")
        return np.packbits(planes, bitorder="little")
    planes = (flat.astype(np.uint64)[:, None] >> np.arange(width.max(), dtype=np.uint64)) & np.uint64(1)
    used = np.arange(width.max())[None, :] < width[:, None]
    return np.packbits(planes.astype(np.uint8)[used], bitorder="little")


def unpack_bits(packed: np.ndarray, bits, count: int) -> np.ndarray:
    """Undo :func:`pack_bits` for ``count`` values: int64 [count]."""
    width = np.broadcast_to(np.asarray(bits, dtype=np.int64), (count,))
    if not count or not width.max():
        return np.zeros(count, dtype=np.int64)
    if width.min() == width.max():  # nearly always, and five times as fast
        planes = np.unpackbits(packed, bitorder="little")[:count * width[0]].reshape(count, width[0])
        values = planes[:, 0].astype(np.int64)
        for bit in range(1, int(width[0])):
            values |= planes[:, bit].astype(np.int64) << bit
        return values
    used = np.arange(width.max())[None, :] < width[:, None]
    planes = np.zeros(used.shape, dtype=np.int64)
    planes[used] = np.unpackbits(packed, bitorder="little")[: int(width.sum())]
    return (planes << np.arange(width.max())).sum(1)


def raw16(values: torch.Tensor) -> np.ndarray:
    """The bytes of 16-bit values, uint8; of wider ones through bf16."""
    half = values if values.element_size() == 2 else values.bfloat16()
    return raw(half)


def raw(values: torch.Tensor) -> np.ndarray:
    """The bytes of any values, uint8."""
    return values.contiguous().view(torch.uint8).numpy().ravel()


def from16(stored: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Undo :func:`raw16`: 16-bit values of ``dtype``, flat."""
    return torch.tensor(stored).view(dtype)


def pack_kept(kept: torch.Tensor, keep: np.ndarray, exponent: torch.Tensor | None = None) -> dict[str, np.ndarray]:
    """The kept weights [nnz], row by row, and the cheapest index of the mask ``keep`` [out, in].

    exponent: int8 [1] of 8-bit floats, which ``kept`` then are; the index may be a coded one.
    """
    coded = exponent is not None
    arrays = {"kept": raw(kept), "kept_exponent": raw(exponent)} if coded else {"kept": raw16(kept)}
    kind = index_bits(keep, coded=coded)[1]
    if kind == "places":
        return arrays | _pack_places(np.flatnonzero(keep), keep.size)
    if kind == "columns":
        return arrays | {"columns": np.packbits(keep[0], bitorder="little")}
    if kind == "rows":
        return arrays | {"rows": np.packbits(keep[:, 0], bitorder="little")}
    if kind == "bitmap":
        return arrays | {"bitmap": np.packbits(keep.ravel(), bitorder="little")}
    counts = keep.sum(1)
    count_bits, column_bits = csr_widths(counts, keep.shape[1])
    return arrays | {"count_bits": np.array([count_bits], dtype=np.uint8), "row_counts": pack_bits(counts, count_bits),
                     "column_numbers": pack_bits(np.nonzero(keep)[1], column_bits)}


def _pack_places(places: np.ndarray, weights: int) -> dict[str, np.ndarray]:
    """The Elias–Fano code of rising ``places`` among ``weights``."""
    low = low_bits(len(places), weights)
    steps = np.zeros(len(places) + (weights >> low), dtype=np.uint8)
    steps[(places >> low) + np.arange(len(places))] = 1
    return {"low_bits": np.array([low], dtype=np.uint8), "low": pack_bits(places & ((1 << low) - 1), low),
            "steps": np.packbits(steps, bitorder="little")}


def _unpack_places(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Undo :func:`_pack_places`."""
    low, ones = int(arrays["low_bits"][0]), np.flatnonzero(np.unpackbits(arrays["steps"], bitorder="little"))
    return ((ones - np.arange(len(ones))) << low) + unpack_bits(arrays["low"], low, len(ones))


def unpack_mask(arrays: dict[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Bool [out, in]: which weights :func:`pack_kept` kept."""
    rows, cols = shape
    if "low_bits" in arrays:
        mask = np.zeros(rows * cols, dtype=bool)
        mask[_unpack_places(arrays)] = True
        return mask.reshape(shape)
    if "columns" in arrays:
        return np.tile(np.unpackbits(arrays["columns"], bitorder="little")[:cols].astype(bool), (rows, 1))
    if "rows" in arrays:
        return np.tile(np.unpackbits(arrays["rows"], bitorder="little")[:rows].astype(bool)[:, None], (1, cols))
    if "bitmap" in arrays:
        return np.unpackbits(arrays["bitmap"], bitorder="little")[: rows * cols].astype(bool).reshape(shape)
    counts = unpack_bits(arrays["row_counts"], int(arrays["count_bits"][0]), rows)
    mask = np.zeros(shape, dtype=bool)
    columns = unpack_bits(arrays["column_numbers"], csr_widths(counts, cols)[1], int(counts.sum()))
    mask[np.repeat(np.arange(rows), counts), columns] = True
    return mask
