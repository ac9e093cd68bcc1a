"""The column loop under GPTQ, SliM-LLM and SpQR, and which columns share a grid.

For one linear W [out, in] with inputs x, H = (2 / sequences) Σ x xᵀ [in, in]; the loss of ŵ is tr((W−Ŵ) H (W−Ŵ)ᵀ).
Columns are quantized from the first to the last; what column j loses is pushed into the later columns:

    U = upper Cholesky factor of (H + λI)⁻¹,   d_j = U_jj
    e_j = (w_j − ŵ_j) / d_j,   w_k ← w_k − e_j U_jk   for k > j

A span's later columns are updated after each of its columns, the rest of a block after each span, the rest of the
matrix after each block.  How columns are cut into spans and blocks decides the cost and the last bit, not the formula.
Paper: arXiv 2210.17323, Eq. 2–3 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.lazy import torch
from core.types import LayerPlan
from quantization.bits import code_bits

BLOCK = 128  # columns whose errors are gathered before the rest of the matrix is touched


def slices(stop: int, step: int, start: int = 0) -> list[slice]:
    """The columns start..stop in runs of ``step``; the last may be shorter."""
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def column_major(weight: torch.Tensor) -> torch.Tensor:
    """A float32 copy of ``weight`` [out, in] as [in, out]: a column of W is one row there, contiguous."""
    return weight.detach().float().t().clone(memory_format=torch.contiguous_format)


def feed_back(columns: torch.Tensor, upper: torch.Tensor, blocks: Sequence[Sequence[slice]],
              quantize: Callable[[int, torch.Tensor], torch.Tensor], *, pivots: Sequence | None = None,
              fused: bool = False, at_once: Callable[[slice, slice, torch.Tensor], None] | None = None) -> torch.Tensor:
    """Quantize ``columns``, float32 [in, out], in place, from the first to the last.

    upper: U, float32 [in, in].  blocks: spans of columns, which together are all columns in order.
    quantize: (number of the column, its weights as all earlier columns have updated them [out]) -> ŵ [out], called once
    a column.  pivots: d_j, floats or a tensor [in]; None = the diagonal of U.
    fused: subtract updates of several columns inside the matrix product, which rounds differently on some matrices.
    at_once: (block, span, errors of the block [block, out]) in place of ``quantize``: quantizes the span's columns,
    updates the later ones of the block and fills in e.

    Returns Σ e² = tr((W−Ŵ)(H + λI)(W−Ŵ)ᵀ), a float64 scalar.
    """
    if pivots is None and at_once is None:
        pivots = upper.diagonal().tolist()
    loss = torch.zeros((), dtype=torch.float64, device=columns.device)
    for block in blocks:
        start, stop = block[0].start, block[-1].stop
        errors = torch.empty_like(columns[start:stop])
        for span in block:
            if at_once is not None:
                at_once(slice(start, stop), span, errors)
                continue
            inside = errors[span.start - start:span.stop - start]
            for j, error in zip(range(span.start, span.stop), inside):
                column = columns[j]
                value = quantize(j, column)
                torch.sub(column, value, out=error).div_(pivots[j])
                column.copy_(value)
                columns[j + 1:span.stop].addr_(upper[j, j + 1:span.stop], error, alpha=-1)
            _subtract(columns[span.stop:stop], upper[span, span.stop:stop], inside, fused=fused)
        _subtract(columns[stop:], upper[start:stop, stop:], errors, fused=fused)
        loss += errors.square().sum(dtype=torch.float64)
    return loss


def _subtract(later: torch.Tensor, upper: torch.Tensor, errors: torch.Tensor, fused: bool) -> None:
    """Push ``errors`` [g, out] into ``later`` columns [c, out] along ``upper`` [g, c]."""
    if not len(later):
        return
    if fused:
        later.addmm_(upper.t(), errors, alpha=-1)
    else:
        later -= upper.t() @ errors


class Groups:
    """Which columns share a scale, and at how many bits."""

    def __init__(self, layer: LayerPlan, width: int):
        self.size = min(layer.group_size, width)
        self.spans, self.bits = slices(width, self.size), code_bits(layer, width).tolist()

    def block(self) -> int:
        """Columns whose updates are gathered before the rest sees them; groups never straddle a block's end."""
        if len(self.spans) == 1:
            return BLOCK
        if self.size < BLOCK:
            return self.size * (BLOCK // self.size)
        return max(d for d in range(1, BLOCK + 1) if self.size % d == 0)
