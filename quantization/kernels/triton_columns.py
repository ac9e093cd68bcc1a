"""The Triton kernel of quantization/kernels/columns.py; importing it needs Triton.

Rounding is written out where Triton's own differs between a GPU and its interpreter.
"""

import triton
import triton.language as tl


@triton.jit
def nearest(x):
    """The nearest whole number, half-way ones to even; |x| up to 4,000,000, larger ones come back as that."""
    x = tl.minimum(tl.maximum(x, -4000000.0), 4000000.0)
    return (x + 12582912.0) - 12582912.0  # 1.5 · 2^23: the sum has no room for a fraction


@triton.jit
def shortened(x, DROP: tl.constexpr):
    """x without the last DROP bits of its fraction, rounded to nearest, half-way ones to even."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + ((1 << (DROP - 1)) - 1) + ((bits >> DROP) & 1)) >> DROP << DROP
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def kept_value(w, unit, KEPT: tl.constexpr):
    """What is stored of a kept weight: itself, bf16, fp16, or E4M3 times ``unit``, a power of two."""
    value = w
    if KEPT == 1:
        value = shortened(w, 16)
    if KEPT == 2:
        value = w.to(tl.float16).to(tl.float32)
    if KEPT == 3:
        x = tl.minimum(tl.maximum(tl.div_rn(w, unit), -448.0), 448.0)
        small = nearest(x * 512.0) / 512.0  # below 2^-6 the steps are all 2^-9
        value = tl.where(tl.abs(x) < 0.015625, small, shortened(x, 20)) * unit
    return value


@triton.jit
def quantize_columns(columns, upper, pivots, scales, zeros, codes, errors, keep, codebook, rows, start, width,
                     first, top, limit, unit, COUNT: tl.constexpr, KIND: tl.constexpr, POINTS: tl.constexpr,
                     KEEP: tl.constexpr, KEPT: tl.constexpr, SEARCH: tl.constexpr, EACH: tl.constexpr,
                     SPAN: tl.constexpr, ROWS: tl.constexpr):
    """COUNT columns from ``first`` on of the block of ``width`` columns that begins at ``start``; ROWS rows of W.

    upper: U of the block alone, [width, width].  EACH: scales and zeros are those of each column, [COUNT, rows].
    codebook: of a table's grid (KIND 4), POINTS − 1 midpoints, then the points.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    column = tl.arange(0, SPAN)
    places = columns + (start + column)[:, None].to(tl.int64) * rows + row[None, :]
    inside = ((column >= first) & (column < width))[:, None] & live[None, :]
    tile = tl.load(places, mask=inside, other=0.0)
    scale = tl.load(scales + row, mask=live, other=1.0)
    zero = tl.load(zeros + row, mask=live, other=0.0)
    divisor = tl.where(scale == 0.0, 1.0, scale)
    if KIND == 2:
        divisor = tl.maximum(scale, 1e-9)
    for step in range(COUNT):
        j = first + step
        if EACH:
            scale = tl.load(scales + step * rows + row, mask=live, other=1.0)
            zero = tl.load(zeros + step * rows + row, mask=live, other=0.0)
            divisor = tl.where(scale == 0.0, 1.0, scale)
        at = (start + j).to(tl.int64) * rows + row
        w = tl.sum(tl.where((column == j)[:, None], tile, 0.0), axis=0)
        if KIND == 0:
            code = tl.minimum(tl.maximum(nearest(tl.div_rn(w, divisor)) + zero, 0.0), top)
            value = (code - zero) * scale
        if KIND == 1:
            code = tl.where(w - zero < 0.0, 0.0, 1.0)
            value = (2.0 * code - 1.0) * scale + zero
        if KIND == 3:
            code = tl.where(w - zero < 0.0, 0.0, tl.where(w - zero > 0.0, 2.0, 1.0))
            value = (code - 1.0) * scale + zero
        if KIND == 2:
            code = tl.minimum(tl.maximum(nearest(tl.div_rn(w, divisor) + zero), 0.0), top)
            value = (code - zero) * scale
        if KIND == 4:
            among, code = tl.div_rn(w, divisor), tl.zeros_like(w)
            value = code + tl.load(codebook + POINTS - 1)
            for point in range(1, POINTS):
                above = among > tl.load(codebook + point - 1)
                code = tl.where(above, code + 1.0, code)
                value = tl.where(above, tl.load(codebook + POINTS - 1 + point), value)
            value = value * scale
        pivot = tl.load(pivots + start + j)
        if SEARCH:
            error = tl.div_rn(w - value, pivot)
            chosen = error * error > limit
            tl.store(keep + at, chosen.to(tl.uint8), mask=live)
            code = tl.where(chosen, tl.minimum(tl.maximum(nearest(zero), 0.0), top), code)
            value = tl.where(chosen, kept_value(w, unit, KEPT), value)
        elif KEEP:
            chosen = tl.load(keep + at, mask=live, other=0) != 0
            value = tl.where(chosen, kept_value(w, unit, KEPT), value)
        tl.store(codes + at, code.to(tl.uint8), mask=live)
        error = tl.div_rn(w - value, pivot)
        tl.store(errors + j * rows + row, error, mask=live)
        row_of_upper = tl.load(upper + j * width + column, mask=(column > j) & (column < width), other=0.0)
        tile = tile - row_of_upper[:, None] * error[None, :]
        tile = tl.where((column == j)[:, None], value[None, :], tile)
    tl.store(places, tile, mask=inside)
