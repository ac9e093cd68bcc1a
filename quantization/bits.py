"""The accountant: the only place where bits are counted.

What one linear of shape [out, in] at b bits in groups of g input columns stores, G = ceil(in/g):

    payload   out · Σ_groups width · b          codes, packed densely
    scales    out · G · scale_bits              16 unless the method publishes others
    zeros     out · G · zero_bits               b by default (integer zero points); 0 with ranges around zero
    bit map   G · 4                             only with per-group bits
    kept      nnz · 16 + index                  index = the cheapest of bitmap, CSR, whole columns, whole rows
              nnz · 8 + 8 + index               kept_bits 8: one exponent a linear; the Elias–Fano code also tried
    whole     out · in · 16                     only where the heads are chosen at run time: any may be needed

Published forms store other things beside the codes (FORMS):

    log       the grid with logarithmic scales: scale_bits a group, and one exponent a linear (LOG_EXPONENT bits)
    table     the same without zero points, and 2^b fp16 values a linear, which codes stand for
    bilevel   SpQR: scale and zero codes per group, then 4 fp16 numbers per 16 rows of a group
    slim      SliM-LLM: as the grid, but a 1-bit group stores its mean at 16 bits instead of a zero point
    codebook  SqueezeLLM: 2^b fp16 values a row
    bnb4      bitsandbytes NF4 / FP4: one float32 maximum per 64 consecutive weights
    bnb8      bitsandbytes LLM.int8: one float32 maximum a row
    split     bnb4 of what is not kept alone; whole rows or columns are kept

Each array is rounded up to whole bytes, because that is how it is packed: the sum equals 8 × the bytes
of :func:`quantization.packing.forms.packed` to the bit (a test holds the two together).  A linear at 16 bits
stores 16 bits a weight and nothing else.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from core.errors import BudgetError
from core.types import Budget, LayerPlan, Plan

MAP_BITS = 4  # the bits of a group, 1..16, stored as bits - 1
KEPT_BITS = 16
KEPT_EXPONENT = 8  # a whole number: kept 8-bit floats are times 2 to that power


def whole_bytes(bits: int) -> int:
    """Round bits up to whole bytes, in bits."""
    return -(-bits // 8) * 8


def group_widths(width: int, group_size: int) -> np.ndarray:
    """Columns of each group; the last may be ragged (native forms only, the grid refuses it)."""
    full, rest = divmod(width, group_size)
    return np.array([group_size] * full + ([rest] if rest else []), dtype=np.int64)


def code_bits(plan: LayerPlan, width: int) -> np.ndarray:
    """Bits of the codes of each group of a linear with ``width`` inputs: int64 [G]."""
    if plan.group_bits is not None:
        return plan.group_bits.astype(np.int64)
    return np.full(-(-width // plan.group_size), plan.bits, dtype=np.int64)


def column_bits(plan: LayerPlan, width: int) -> np.ndarray:
    """Bits of the codes of each column: int64 [in]."""
    return np.repeat(code_bits(plan, width), group_widths(width, plan.group_size))


def index_bits(keep: np.ndarray, coded: bool = False) -> tuple[int, str]:
    """Bits of the cheapest index that says which weights of a [out, in] mask are kept, and its name.

    "columns": every row keeps the same columns, one bit a column.  "rows": whole rows, one bit a row.
    "bitmap": one bit a weight.  "csr": per row a count, per kept weight a column number, both in the fewest bits that
    fit.  "places", only if ``coded``: the code of Elias and Fano for the rising numbers of the kept weights.
    """
    rows, cols = keep.shape
    options = single_index_bits(keep.sum(1), cols, coded)
    if (keep == keep[0]).all():
        options["columns"] = whole_bytes(cols)
    if (keep == keep[:, :1]).all():
        options["rows"] = whole_bytes(rows)
    name = min(sorted(options), key=options.get)
    return options[name], name


def single_index_bits(counts: np.ndarray, cols: int, coded: bool) -> dict[str, int]:
    """Bits of each index of single weights, by name; counts: kept weights of each row."""
    weights = len(counts) * cols
    options = {"bitmap": whole_bytes(weights), "csr": csr_bits(counts, cols)}
    return options | ({"places": places_bits(int(counts.sum()), weights)} if coded else {})


def csr_widths(counts: np.ndarray, cols: int) -> tuple[int, int]:
    """Bits of a row count and of a column number in a CSR index."""
    return int(counts.max()).bit_length(), column_number_bits(cols)


def column_number_bits(cols: int) -> int:
    """Bits that number one of ``cols`` columns."""
    return max(1, (cols - 1).bit_length())


def csr_bits(counts: np.ndarray, cols: int) -> int:
    """Bits of a CSR index: a byte for the counts' width, row counts (the row pointers' increments), column numbers."""
    count_bits, column_bits = csr_widths(counts, cols)
    return 8 + whole_bytes(len(counts) * count_bits) + whole_bytes(int(counts.sum()) * column_bits)


def low_bits(count: int, weights: int) -> int:
    """Bits of each place that the Elias–Fano code writes out: those of the mean gap, rounded down."""
    return max(0, (weights // max(1, count)).bit_length() - 1)


def places_bits(count: int, weights: int) -> int:
    """Bits of an Elias–Fano code of ``count`` places among ``weights``: a byte for the number of low bits, the low
    bits, and of the rest each place's step in unary.  About 2 + log2(weights / count) bits a place.
    """
    low = low_bits(count, weights)
    return 8 + whole_bytes(count * low) + whole_bytes(count + (weights >> low))


def kept_bits(keep: np.ndarray | None, bits: int = KEPT_BITS) -> int:
    """Bits of the kept weights: their values and their index."""
    if keep is None or not keep.any():
        return 0
    return values_bits(int(keep.sum()), bits) + index_bits(keep, coded=bits < KEPT_BITS)[0]


def values_bits(count: int, bits: int) -> int:
    """Bits of the values of ``count`` kept weights; of 8-bit floats with the exponent that they share."""
    return count * bits + (KEPT_EXPONENT if bits < KEPT_BITS and count else 0)


def layer_bits(plan: LayerPlan, shape: tuple[int, int]) -> int:
    """Stored bits of one linear of ``shape`` [out, in] under ``plan``, metadata included."""
    rows, cols = shape
    if plan.bits == 16 and plan.group_bits is None:
        return 16 * rows * cols
    whole = 16 * rows * cols if plan.dynamic_heads else 0
    return FORMS[plan.form](plan, rows, cols) + kept_bits(plan.keep, plan.kept_bits) + whole


def order_bits(plan: LayerPlan, cols: int) -> int:
    """Bits of a stored column permutation."""
    return whole_bytes(cols * column_number_bits(cols)) if plan.ordered else 0


def _grid(plan: LayerPlan, rows: int, cols: int) -> int:
    bits = code_bits(plan, cols)
    zeros = bits.sum() if plan.zero_bits is None else plan.zero_bits * len(bits)
    total = whole_bytes(rows * int((group_widths(cols, plan.group_size) * bits).sum()))
    total += whole_bytes(rows * len(bits) * plan.scale_bits) + whole_bytes(rows * int(zeros))
    if plan.group_bits is not None:
        total += whole_bytes(len(bits) * MAP_BITS)
    return total + order_bits(plan, cols)


def _log(plan: LayerPlan, rows: int, cols: int) -> int:
    return _grid(plan, rows, cols) + LOG_EXPONENT


def _table(plan: LayerPlan, rows: int, cols: int) -> int:
    return _log(plan, rows, cols) + 2**plan.bits * 16


def _bilevel(plan: LayerPlan, rows: int, cols: int) -> int:
    groups, tiles = len(code_bits(plan, cols)), -(-rows // BILEVEL_ROWS)
    codes = whole_bytes(rows * cols * plan.bits) + whole_bytes(rows * groups * plan.scale_bits)
    return codes + whole_bytes(rows * groups * plan.zero_bits) + 4 * 16 * tiles * groups + order_bits(plan, cols)


def _slim(plan: LayerPlan, rows: int, cols: int) -> int:
    bits = code_bits(plan, cols)
    codes = whole_bytes(rows * int((group_widths(cols, plan.group_size) * bits).sum()))
    zeros = whole_bytes(rows * int(bits[bits > 1].sum())) + 16 * rows * int((bits == 1).sum())
    return codes + rows * len(bits) * plan.scale_bits + zeros + whole_bytes(len(bits) * MAP_BITS)


def _codebook(plan: LayerPlan, rows: int, cols: int) -> int:
    return whole_bytes(rows * cols * plan.bits) + rows * 2**plan.bits * 16


def _bnb4(plan: LayerPlan, rows: int, cols: int) -> int:
    return whole_bytes(rows * cols * 4) + 32 * -(-rows * cols // plan.group_size)


def _bnb8(plan: LayerPlan, rows: int, cols: int) -> int:
    return 8 * rows * cols + 32 * rows


def _split(plan: LayerPlan, rows: int, cols: int) -> int:
    rest = rows * cols - (0 if plan.keep is None else int(plan.keep.sum()))
    return whole_bytes(rest * 4) + 32 * -(-rest // plan.group_size)


LOG_EXPONENT = 8  # a whole number: the largest scale of a linear is 2 to that power
BILEVEL_ROWS = 16  # consecutive output rows that share second-level statistics
FORMS = {"grid": _grid, "log": _log, "table": _table, "bilevel": _bilevel, "slim": _slim, "codebook": _codebook,
         "bnb4": _bnb4, "bnb8": _bnb8, "split": _split}


def activation_bits(shapes: Mapping[str, tuple[int, int]], bits: int, keep: float, group: int) -> int:
    """Bits that the linears read for one token: codes, kept channels at 16 bits, and of each group of channels a
    float32 scale and a zero point among the codes.  Which channels are kept is fixed, so no token says it.
    """
    total = 0
    for _, width in shapes.values():
        kept = width if bits == 16 else int(keep * width + 1e-9)
        groups = -(-width // group) if kept < width else 0
        total += kept * KEPT_BITS + (width - kept) * bits + groups * (32 + bits)
    return total


def make_plan(layers: Mapping[str, LayerPlan], shapes: Mapping[str, tuple[int, int]], other: tuple[int, int],
              notes: dict) -> Plan:
    """Count a plan.  ``other`` = (bits, values) of everything that is not a quantized weight."""
    if set(layers) != set(shapes):
        missing = sorted(set(shapes) ^ set(layers))[:3]
        raise ValueError(f"the plan and the model disagree about linears such as {missing}; an allocator must plan "
                         "every one")
    stored = sum(layer_bits(layers[fqn], shapes[fqn]) for fqn in shapes)
    return _counted(dict(layers), stored, shapes=shapes, other=other, notes=notes)


def full_precision_plan(shapes: Mapping[str, tuple[int, int]], other: tuple[int, int], element_bits: int) -> Plan:
    """The plan of the model as loaded: nothing quantized, ``element_bits`` a weight."""
    return _counted({}, weights_of(shapes) * element_bits, shapes=shapes, other=other, notes={})


def _counted(layers: dict[str, LayerPlan], stored: int, *, shapes, other: tuple[int, int], notes: dict) -> Plan:
    weights = weights_of(shapes)
    return Plan(layers, stored_bits=stored, avg_bits=stored / weights, notes=notes,
                model_avg_bits=(stored + other[0]) / (weights + other[1]))


def weights_of(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Weights of all linears."""
    return sum(rows * cols for rows, cols in shapes.values())


def bits_within(shapes: Mapping[str, tuple[int, int]], avg_bits: float) -> int:
    """The whole bits that may be stored at so many a weight."""
    return int(avg_bits * weights_of(shapes) + 1e-6)


def stored_grid(bits: int, group_size: int, scale_bits: int = 16, zero_bits: int | None = None,
                table: bool = False) -> LayerPlan:
    """A linear on a grid; scales of other than 16 bits are logarithmic.  With a table codes stand for its values."""
    form = "grid" if scale_bits == 16 or bits == 16 else "table" if table else "log"
    return LayerPlan(bits=bits, group_size=group_size, scale_bits=scale_bits, zero_bits=zero_bits, form=form)


def grid_plan(bits: int, budget: Budget) -> LayerPlan:
    """A linear at one level of the budget's grid."""
    grid = stored_grid(bits, budget.group_size, budget.scale_bits, budget.zero_bits, budget.table)
    return replace(grid, kept_bits=budget.kept_bits)


def uniform_bits(bits: int, shapes: Mapping[str, tuple[int, int]], budget: Budget) -> int:
    """Stored bits of all linears at one level of the budget's grid."""
    return sum(layer_bits(grid_plan(bits, budget), shape) for shape in shapes.values())


def achievable(shapes: Mapping[str, tuple[int, int]], budget: Budget) -> tuple[float, float]:
    """Lowest and highest average bits that the budget's levels and group size can give."""
    weights = weights_of(shapes)
    return tuple(uniform_bits(level, shapes, budget) / weights for level in (min(budget.levels), max(budget.levels)))


def check_budget(plan: Plan, budget: Budget, who: str) -> None:
    """Raise unless avg_bits - tolerance < plan.avg_bits <= avg_bits."""
    if not budget.avg_bits - budget.tolerance < plan.avg_bits <= budget.avg_bits + 1e-12:
        raise BudgetError(f"{who}: the plan stores {plan.avg_bits:.4f} bits a weight, the budget allows "
                          f"({budget.avg_bits - budget.tolerance:.4f}, {budget.avg_bits:.4f}]; change --avg_bits, or "
                          "widen --tolerance on a model with few linears")


def fitting_groups(widths, candidates=(128, 96, 64, 32)) -> list[int]:
    """Group sizes among ``candidates`` that divide every width, largest first."""
    return [g for g in candidates if all(w % g == 0 for w in widths)]


def check_groups(shapes: Mapping[str, tuple[int, int]], group_size: int) -> None:
    """Refuse a group size that does not divide every width; names the first offenders and what fits."""
    bad = [f"{fqn} ({cols})" for fqn, (_, cols) in shapes.items() if cols % group_size]
    if bad:
        common = math.gcd(*(cols for _, cols in shapes.values()))
        fits = [g for g in range(min(256, common), 7, -1) if common % g == 0][:6]
        more = f" and {len(bad) - 2} more" if len(bad) > 2 else ""
        allowed = ", ".join(map(str, fits)) or "none of 8 to 256"
        raise BudgetError(f"group size {group_size} does not divide the input width of {', '.join(bad[:2])}{more}; "
                          f"group sizes that fit this model: {allowed} (--group_size)")
