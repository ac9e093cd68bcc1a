"""The column loop of quantization/solvers/columns.py over a span of columns as one Triton kernel, for weights on a GPU.

A row of W meets no other row in the loop, so a program takes a few rows through all columns of the span with the block
in registers: one launch a group, or one for columns that each bring their own scales, where the loop in PyTorch takes
about a dozen a column.

The same formulas in float32; products and sums may be contracted, so the last bit may differ from PyTorch's, and a
weight half-way between two codes may take the other.  Triton comes with PyTorch's builds for CUDA; without it, and on
the CPU, the loop runs in PyTorch.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec

from core.errors import one_line
from core.lazy import torch
from quantization.solvers.grid import FloatGrid, Grid, SignGrid
from quantization.solvers.kept import Float8
from quantization.solvers.table import TableGrid

log = logging.getLogger(__name__)
ROWS = 16  # of W that a program takes
# in the environment: "0" PyTorch's loop on a GPU as well, "interpret" Triton's interpreter (TRITON_INTERPRET=1) on any
SWITCH = "TAQ_FUSED"


def runs_fused(device: torch.device) -> bool:
    """Whether the kernel takes columns on this device: a GPU where it was seen to run, or Triton's interpreter."""
    wish = os.environ.get(SWITCH)
    asked = wish == "interpret" or (device.type == "cuda" and wish != "0")  # on a CPU no linear looks for Triton
    return asked and find_spec("triton") is not None and (wish == "interpret" or seen_running(device))


@cache
def seen_running(device: torch.device) -> bool:
    """Run the kernel once on 16 weights: Triton needs a C compiler and Python's headers there."""
    one = torch.ones(4, 4, device=device)
    try:
        for scale in (one[0], one):
            quantize_group(one.clone(), one, one[0], Grid(scale, 0 * scale, 3), one.byte(), one.clone(),
                           block=slice(0, 4), group=slice(0, 4))
    except Exception as error:  # whatever a toolchain may lack
        log.warning("the GPU kernel of the column loop does not run here (%s); PyTorch's loop takes its place, several "
                    "times as slow", one_line(error))
        return False
    return True


def quantize_group(columns: torch.Tensor, upper: torch.Tensor, pivots: torch.Tensor, grid: Grid, codes: torch.Tensor,
                   errors: torch.Tensor, *, block: slice, group: slice, keep: torch.Tensor | None = None,
                   stored: torch.dtype | Float8 | None = None, limit: float = math.inf) -> None:
    """Quantize the columns ``group`` inside ``block`` of ``columns`` float32 [in, out], in place.

    upper: U [in, in]; pivots: d [in]; grid: scale and zero point [out], of a Grid or TableGrid also those of each
    column, [group, out]; codes: uint8 [in, out], filled in; errors: of the block, [block, out], filled in at the group.
    Later columns of the block get their updates.
    keep: bool [in, out], the kept weights, each rounded to ``stored`` (None: not rounded).  A finite ``limit`` keeps
    every weight with e² above it, writes ``keep``, and gives it the code of 0.
    """
    from quantization.kernels.triton_columns import quantize_columns

    rows, width = columns.shape[1], block.stop - block.start
    kinds, codebook = {Grid: 0, SignGrid: 1, FloatGrid: 2, TableGrid: 4}, columns
    if isinstance(grid, TableGrid):
        codebook = torch.cat([grid.midpoints, grid.table])
    kind = 3 if isinstance(grid, SignGrid) and grid.published else kinds[type(grid)]
    forms = {None: 0, torch.bfloat16: 1, torch.float16: 2}
    float8 = isinstance(stored, Float8)
    # Triton launches on the current GPU
    with torch.cuda.device(columns.device) if columns.is_cuda else nullcontext():
        quantize_columns[(-(-rows // ROWS),)](
            columns, upper[block, block].contiguous(), pivots, grid.scale.contiguous(), grid.zero.contiguous(), codes,
            errors, codes if keep is None else keep.view(torch.uint8), codebook, rows, block.start, width,
            group.start - block.start, float(grid.top), float(limit), 2.0**stored.exponent if float8 else 1.0,
            COUNT=group.stop - group.start, KIND=kind, POINTS=len(grid.table) if kind == 4 else 0,
            KEEP=keep is not None, KEPT=3 if float8 else forms[stored],
            SEARCH=math.isfinite(limit), EACH=grid.scale.ndim == 2, SPAN=max(16, 1 << (width - 1).bit_length()),
            ROWS=ROWS)
