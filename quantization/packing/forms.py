"""Any quantized linear as the arrays that would be stored, and back, whatever its form.

This is what the accountant counts: ``8 * sum(a.nbytes) == layer_bits(layer, shape)`` for every form of
quantization/bits.py.  All arrays are uint8.  Kept weights are the last part of every form.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from core.errors import UserError
from core.lazy import torch
from core.types import LayerPlan, Stored
from quantization.bits import BILEVEL_ROWS, MAP_BITS, code_bits, column_bits, column_number_bits
from quantization.packing.bytes import from16, pack_bits, pack_kept, raw, raw16, unpack_bits, unpack_mask
from quantization.solvers import bnb, codebook, slim, split
from quantization.solvers.grid import LOGARITHMIC, Grid, LogScale, MinimumGrid, middle, spread_groups
from quantization.solvers.kept import Float8, kept_values, sixteen_bit
from quantization.solvers.rtn import encode
from quantization.solvers.spqr_fit import Level
from quantization.solvers.table import TableGrid

PACKED = "packed."  # before the names of parts that are stored arrays already, as those of a library are


def packed(stored: Stored, weight: torch.Tensor | None = None) -> dict[str, np.ndarray]:
    """The stored arrays of what a quantizer that reads data left; of a linear whose heads are chosen at run time, with
    its ``weight`` [out, in] as loaded.

    Raises UserError where the published arithmetic holds numbers that no stored form has.
    """
    parts = {name: part.cpu() for name, part in stored.parts.items()}
    if any(name.startswith(PACKED) for name in parts):
        return {name.removeprefix(PACKED): part.numpy() for name, part in parts.items()}
    pack = {"grid": pack_grid, "log": pack_grid, "table": pack_grid, "bilevel": pack_spqr, "slim": pack_slim,
            "codebook": pack_codebook}
    arrays = pack[stored.layer.form](stored.layer, parts)
    if stored.layer.dynamic_heads:
        arrays["whole"] = raw16(weight)
    return arrays | _pack_kept(parts, stored.layer)


def unpacked(arrays: dict[str, np.ndarray], layer: LayerPlan, shape: tuple[int, int],
             kept_dtype: torch.dtype | None = None, *, quantizer: str = "",
             dtype: torch.dtype | None = None) -> torch.Tensor:
    """Undo :func:`packed` and :func:`packed_alone`: ŵ [out, in], float32, or ``dtype`` where bitsandbytes made it.

    kept_dtype: that of the kept weights, None = bf16; quantizer: by which the linear was quantized, which says the
    kind of 4-bit codes.
    """
    if layer.form in ("bnb4", "bnb8", "split"):
        return _unpack_bnb(arrays, layer, shape, quantizer=quantizer, dtype=dtype or torch.float32)
    unpack = {"grid": unpack_grid, "log": unpack_grid, "table": unpack_grid, "bilevel": unpack_spqr,
              "slim": unpack_slim, "codebook": unpack_codebook}
    more = {"float_zero": True} if layer.zero_bits == 32 else {}
    values = unpack[layer.form](arrays, layer, shape, **more)
    return _with_kept(values, arrays, torch.bfloat16 if kept_dtype is None else kept_dtype)


def packed_alone(weight: torch.Tensor, layer: LayerPlan, quantizer: str) -> dict[str, np.ndarray]:
    """The stored arrays of a quantizer that reads the weight alone."""
    if layer.form in ("bnb4", "bnb8"):
        kind = quantizer.removeprefix("bnb-")
        codes, maxima, _ = bnb.eight_bit(weight) if layer.form == "bnb8" else bnb.four_bit(weight, kind)
        return {"codes": raw(codes), "maxima": raw(maxima.float())}
    if layer.form == "split":
        return pack_split(weight, layer)
    return pack_nearest(weight, layer, float_zero=quantizer.startswith("rtn-float"),
                        kept_in_range=quantizer == "rtn-full-range")


def pack_split(weight: torch.Tensor, layer: LayerPlan) -> dict[str, np.ndarray]:
    """4-bit codes and maxima of what is not kept, then the kept rows or columns."""
    rest = split.rest_of(weight, layer)
    codes, maxima = bnb.four_bit(rest, split.KIND)[:2] if len(rest) else (rest.new_zeros(0, dtype=torch.uint8),) * 2
    arrays = {"codes": raw(codes), "maxima": raw(maxima.float())}
    if layer.keep is None or not layer.keep.any():
        return arrays
    return arrays | pack_kept(weight[torch.as_tensor(layer.keep)], layer.keep)


def _pack_kept(parts: dict[str, torch.Tensor], layer: LayerPlan) -> dict[str, np.ndarray]:
    """The kept weights among a linear's parts, if it has any."""
    return pack_kept(parts["kept"], layer.keep, parts.get("kept_exponent")) if "kept" in parts else {}


def _with_kept(values: torch.Tensor, arrays: dict[str, np.ndarray], kept_dtype: torch.dtype) -> torch.Tensor:
    if "kept" in arrays:
        mask = torch.tensor(unpack_mask(arrays, tuple(values.shape)))
        values[mask] = kept_of(arrays, kept_dtype).to(values.dtype)
    return values


def kept_of(arrays: dict[str, np.ndarray], kept_dtype: torch.dtype) -> torch.Tensor:
    """The kept weights [nnz], in ``kept_dtype`` or, of 8-bit floats, float32."""
    if "kept_exponent" not in arrays:
        return from16(arrays["kept"], kept_dtype)
    exponent = int(arrays["kept_exponent"].view(np.int8)[0])
    return Float8(exponent).values(torch.tensor(arrays["kept"]).view(torch.float8_e4m3fn))


def _unpack_bnb(arrays: dict[str, np.ndarray], layer: LayerPlan, shape: tuple[int, int], *, quantizer: str,
                dtype: torch.dtype) -> torch.Tensor:
    codes, maxima = torch.tensor(arrays["codes"]), torch.tensor(arrays["maxima"].view(np.float32))
    if layer.form == "bnb8":
        return bnb.from_eight_bit(codes.view(torch.int8).view(shape), maxima, dtype)
    if layer.form == "bnb4":
        return bnb.from_four_bit(codes[:, None], maxima, shape, kind=quantizer.removeprefix("bnb-"), dtype=dtype)
    values = torch.empty(shape, dtype=dtype)
    mask = torch.tensor(unpack_mask(arrays, shape)) if "kept" in arrays else torch.zeros(shape, dtype=torch.bool)
    rest = int((~mask).sum())
    if rest:
        values[~mask] = bnb.from_four_bit(codes[:, None], maxima, (rest,), kind=split.KIND, dtype=dtype)
    if "kept" in arrays:
        values[mask] = kept_of(arrays, sixteen_bit(dtype)).to(dtype)
    return values


# ---- grid: GPTQ and round-to-nearest -----------------------------------------------------------------------------

def pack_nearest(weight: torch.Tensor, plan: LayerPlan, *, float_zero: bool = False,
                 kept_in_range: bool = False) -> dict[str, np.ndarray]:
    """Quantize ``weight`` [out, in] by round-to-nearest and return its stored arrays."""
    if plan.bits == 16 and plan.group_bits is None:
        return {"weight": raw16(weight)}
    encoded = encode(weight.float(), plan, float_zero=float_zero, kept_in_range=kept_in_range)
    arrays = pack_grid(plan, encoded.parts)
    if plan.dynamic_heads:
        arrays["whole"] = raw16(weight)
    return arrays | _pack_kept(kept_values(weight, plan.keep, sixteen_bit(weight.dtype), Float8.of(weight, plan)), plan)


def unpack_nearest(arrays: dict[str, np.ndarray], plan: LayerPlan, shape: tuple[int, int], *, dtype: torch.dtype,
                   float_zero: bool = False) -> torch.Tensor:
    """Undo :func:`pack_nearest`: ŵ [out, in] in the ``dtype`` of the weight that was quantized."""
    if "weight" in arrays:
        return from16(arrays["weight"], sixteen_bit(dtype)).to(dtype).reshape(shape)
    values = unpack_grid(arrays, plan, shape, float_zero=float_zero).to(dtype)
    return _with_kept(values, arrays, sixteen_bit(dtype))


def pack_grid(plan: LayerPlan, parts: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Codes, scales and zero points; a table, the map of the groups' bits and the order of the columns where any is."""
    (rows, cols), zero, order = parts["codes"].shape, parts["zero"], parts.get("order")
    arrays = {"codes": pack_bits(parts["codes"].numpy(), _grid_bits(plan, rows, cols, order=order)),
              "scale": _pack_scale(plan, parts)}
    if plan.form in LOGARITHMIC:
        arrays["exponent"] = raw(parts["exponent"])
    if plan.form == "table":
        arrays["table"] = raw(parts["table"].half())
    # 32 bits are a float32 zero point, or minimum
    arrays["zero"] = raw(zero) if plan.zero_bits == 32 else pack_bits(zero.numpy(), _zero_bits(plan, rows, cols))
    if plan.group_bits is not None:
        arrays["map"] = pack_bits(plan.group_bits.astype(np.int64) - 1, MAP_BITS)
    if plan.ordered:
        arrays["order"] = pack_bits(order.numpy(), column_number_bits(cols))
    return arrays


def unpack_grid(arrays: dict[str, np.ndarray], plan: LayerPlan, shape: tuple[int, int], *,
                float_zero: bool = False) -> torch.Tensor:
    """Undo :func:`pack_grid`: ŵ float32 [out, in]."""
    rows, cols = shape
    order = torch.tensor(unpack_bits(arrays["order"], column_number_bits(cols), cols)) if plan.ordered else None
    codes = unpack_bits(arrays["codes"], _grid_bits(plan, rows, cols, order=order), rows * cols)
    zero_bits = _zero_bits(plan, rows, cols)
    scale, zero = _unpack_scale(plan, arrays, rows * len(code_bits(plan, cols))), arrays["zero"]
    if plan.zero_bits == 32:
        zero = zero.view(np.float32)
    elif plan.zero_bits == 0:
        zero = middle(np.tile(code_bits(plan, cols), rows))
    else:
        zero = unpack_bits(zero, zero_bits, len(zero_bits))
    group = group_of_column(plan, cols, order)
    scale, zero = (torch.tensor(t.astype(np.float32)).reshape(rows, -1)[:, group] for t in (scale, zero))
    table = torch.tensor(arrays["table"]) if plan.form == "table" else None
    return points(scale, zero, table, minimum=float_zero).values_(torch.tensor(codes).reshape(shape).float())


def points(scale: torch.Tensor, zero: torch.Tensor, table: torch.Tensor | None, minimum: bool) -> Grid:
    """What codes stand for: values of a ``table`` (as bytes), or steps from a zero point or from the minimum."""
    if table is not None:
        return TableGrid(scale, zero, table=table.view(torch.float16).float())
    return (MinimumGrid if minimum else Grid)(scale, zero)


def _pack_scale(plan: LayerPlan, parts: dict[str, torch.Tensor]) -> np.ndarray:
    if plan.form in LOGARITHMIC:
        codes = LogScale(int(parts["exponent"]), plan.scale_bits).codes(parts["scale"])
        return pack_bits(codes.numpy(), plan.scale_bits)
    return raw(parts["scale"].half() if plan.scale_bits == 16 else parts["scale"])


def _unpack_scale(plan: LayerPlan, arrays: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Scales [out · G], in the numbers that they are stored as."""
    if plan.form in LOGARITHMIC:
        codes = torch.tensor(unpack_bits(arrays["scale"], plan.scale_bits, count))
        return scales_of(plan, LogScale(int(arrays["exponent"].view(np.int8)[0]), plan.scale_bits), codes).numpy()
    return arrays["scale"].view(np.float16 if plan.scale_bits == 16 else np.float32)


def scales_of(plan: LayerPlan, logs: LogScale, codes: torch.Tensor) -> torch.Tensor:
    """The scales that codes stand for, float32; over a table code 0 is a group of zeros."""
    scale = logs.values(codes)
    return scale if plan.form == "log" else scale.masked_fill(codes == 0, 0.0)


def group_of_column(plan: LayerPlan, cols: int, order: torch.Tensor | None = None) -> np.ndarray:
    """The group of each column [in]; groups run over ``order`` where the columns were permuted."""
    place = np.arange(cols) if order is None else np.argsort(order.numpy())
    return place // plan.group_size


def _grid_bits(plan: LayerPlan, rows: int, cols: int, *, order: torch.Tensor | None) -> np.ndarray:
    """Bits of each code [out · in]."""
    return np.tile(code_bits(plan, cols)[group_of_column(plan, cols, order)], rows)


def _zero_bits(plan: LayerPlan, rows: int, cols: int) -> np.ndarray:
    """Bits of each zero point [out · G]."""
    bits = code_bits(plan, cols)
    return np.tile(bits if plan.zero_bits is None else np.full_like(bits, plan.zero_bits), rows)


# ---- bilevel: SpQR -----------------------------------------------------------------------------------------------

STATISTICS = ("scale_s", "scale_z", "zero_s", "zero_z")  # [tiles, G]: scale = scale_s (code − scale_z), zero likewise


def pack_spqr(layer: LayerPlan, parts: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Codes of weights, scales and zero points, the second level's fp16 numbers, the order of the columns."""
    if not all(torch.equal(parts[name].half().float(), parts[name]) for name in STATISTICS):
        raise UserError("the published SpQR arithmetic holds its second level in float32, which is not what is stored; "
                        "quantize without it to pack")
    widths = {"codes": layer.bits, "scale_codes": layer.scale_bits, "zero_codes": layer.zero_bits}
    arrays = {name: pack_bits(parts[name].numpy(), bits) for name, bits in widths.items()}
    arrays["statistics"] = raw(torch.stack([parts[name] for name in STATISTICS]).half())
    if layer.ordered:
        arrays["order"] = pack_bits(parts["perm"].numpy(), column_number_bits(parts["codes"].shape[1]))
    return arrays


def unpack_spqr(arrays: dict[str, np.ndarray], layer: LayerPlan, shape: tuple[int, int]) -> torch.Tensor:
    """Undo :func:`pack_spqr`: ŵ float32 [out, in]."""
    rows, cols = shape
    groups, tiles = len(code_bits(layer, cols)), -(-rows // BILEVEL_ROWS)

    def numbers(name: str, bits: int, *size: int) -> torch.Tensor:
        return torch.tensor(unpack_bits(arrays[name], bits, math.prod(size))).reshape(size)

    def level(name: str, bits: int, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        codes = numbers(name, bits, rows, groups)
        decoded = [Level(codes[:, g], scale[:, g], zero[:, g]).decode() for g in range(groups)]
        return spread_groups(torch.stack(decoded, dim=1), layer.group_size, cols)

    statistics = torch.tensor(arrays["statistics"].view(np.float16).astype(np.float32)).reshape(4, tiles, groups)
    scale = level("scale_codes", layer.scale_bits, *statistics[:2])
    zero = level("zero_codes", layer.zero_bits, *statistics[2:])
    values = Grid(scale, zero).values_(numbers("codes", layer.bits, rows, cols).float())
    if not layer.ordered:
        return values
    return values[:, torch.argsort(numbers("order", column_number_bits(cols), cols))]


# ---- slim: SliM-LLM ----------------------------------------------------------------------------------------------

def pack_slim(layer: LayerPlan, parts: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Codes, fp16 scales, zero points (b bits), fp16 means of 1-bit groups, the map of the groups' bits."""
    if layer.scale_bits != 16:
        raise UserError("the published form of SliM-LLM has float32 scales and three codes at 1 bit; only the "
                        "corrected form can be packed")
    rows, width = parts["codes"].shape
    bits, zero = layer.group_bits.astype(np.int64), parts["zero"].numpy()
    return {"codes": pack_bits(parts["codes"].numpy(), np.tile(column_bits(layer, width), rows)),
            "scale": raw(parts["scale"].half()),
            "zero": pack_bits(zero[:, bits > 1], np.tile(bits[bits > 1], rows)),
            "mean": np.ascontiguousarray(zero[:, bits == 1].astype(np.float16)).view(np.uint8).ravel(),
            "map": pack_bits(bits - 1, MAP_BITS)}


def unpack_slim(arrays: dict[str, np.ndarray], layer: LayerPlan, shape: tuple[int, int]) -> torch.Tensor:
    """Undo :func:`pack_slim`: ŵ float32 [out, in]; the groups' bits are those of the arrays."""
    rows, width = shape
    groups = len(code_bits(layer, width))
    bits = unpack_bits(arrays["map"], MAP_BITS, groups) + 1
    layer = replace(layer, group_bits=bits.astype(np.uint8))
    codes = unpack_bits(arrays["codes"], np.tile(column_bits(layer, width), rows), rows * width).reshape(shape)
    zero_bits, zero = np.tile(bits[bits > 1], rows), np.zeros((rows, groups), dtype=np.float32)
    zero[:, bits > 1] = unpack_bits(arrays["zero"], zero_bits, len(zero_bits)).reshape(rows, -1)
    zero[:, bits == 1] = arrays["mean"].view(np.float16).reshape(rows, -1)
    scale = arrays["scale"].view(np.float16).astype(np.float32).reshape(rows, groups)
    return slim.decode({"codes": torch.tensor(codes), "scale": torch.tensor(scale), "zero": torch.tensor(zero)}, layer)


# ---- codebook: SqueezeLLM ----------------------------------------------------------------------------------------

def pack_codebook(layer: LayerPlan, parts: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Codes, and the fp16 values of each row that they stand for."""
    return {"codes": pack_bits(parts["codes"].numpy(), layer.bits), "centers": raw(parts["centers"])}


def unpack_codebook(arrays: dict[str, np.ndarray], layer: LayerPlan, shape: tuple[int, int]) -> torch.Tensor:
    """Undo :func:`pack_codebook`: ŵ float32 [out, in]; of ``layer`` only the bits are read."""
    rows, cols = shape
    codes = torch.tensor(unpack_bits(arrays["codes"], layer.bits, rows * cols).reshape(shape))
    centers = torch.tensor(arrays["centers"].view(np.float16)).reshape(rows, -1)
    return codebook.decode({"codes": codes, "centers": centers})
