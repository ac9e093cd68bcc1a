"""The column loop of quantization/solvers/columns.py over a group's columns as one Triton kernel, for weights on a GPU.

A row of W meets no other row in the loop, so a program takes a few rows through all columns of the group with the block
in registers: one launch a group, where the loop in PyTorch takes about a dozen a column.

The same formulas in float32; products and sums may be contracted, so the last bit may differ from PyTorch's, and a
weight half-way between two codes may take the other.  Triton comes with PyTorch's builds for CUDA; without it, and on
the CPU, the loop runs in PyTorch.
"""

from __future__ import annotations

import math
import os
from importlib.util import find_spec

from core.lazy import torch
from quantization.solvers.grid import FloatGrid, Grid, SignGrid
from quantization.solvers.kept import Float8

ROWS = 16  # of W that a program takes
SWITCH = "TAQ_FUSED"  # "0" in the environment: PyTorch's loop on the GPU as well


def runs_fused(columns: torch.Tensor) -> bool:
    """Whether the kernel can take these columns: on a GPU, or in Triton's interpreter, and Triton is there."""
    here = columns.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return here and os.environ.get(SWITCH) != "0" and find_spec("triton") is not None


def quantize_group(columns: torch.Tensor, upper: torch.Tensor, pivots: torch.Tensor, grid: Grid, codes: torch.Tensor,
                   errors: torch.Tensor, *, block: slice, group: slice, keep: torch.Tensor | None = None,
                   stored: torch.dtype | Float8 | None = None, limit: float = math.inf) -> None:
    """Quantize the columns ``group`` inside ``block`` of ``columns`` float32 [in, out], in place, all in one grid.

    upper: U [in, in]; pivots: d [in]; grid: scale and zero point [out]; codes: uint8 [in, out], filled in; errors: of
    the block, [block, out], filled in at the group.  Later columns of the block get their updates.
    keep: bool [in, out], the kept weights, each rounded to ``stored`` (None: not rounded).  A finite ``limit`` keeps
    every weight with e² above it, writes ``keep``, and gives it the code of 0.
    """
    from quantization.kernels.triton_columns import quantize_columns

    rows, width = columns.shape[1], block.stop - block.start
    kinds = {Grid: 0, SignGrid: 1, FloatGrid: 2}
    kind = 3 if isinstance(grid, SignGrid) and grid.published else kinds[type(grid)]
    forms = {None: 0, torch.bfloat16: 2, torch.float16: 3}
    float8 = isinstance(stored, Float8)
    quantize_columns[(-(-rows // ROWS),)](
        columns, upper[block, block].contiguous(), pivots, grid.scale.contiguous(), grid.zero.contiguous(), codes,
        errors, codes if keep is None else keep.view(torch.uint8), rows, block.start, width,
        group.start - block.start, float(grid.top), float(limit), 2.0**stored.exponent if float8 else 1.0,
        COUNT=group.stop - group.start, KIND=kind, KEEP=keep is not None,
        KEPT=4 if float8 else forms[stored], SEARCH=math.isfinite(limit), SPAN=max(16, 1 << (width - 1).bit_length()),
        ROWS=ROWS)
