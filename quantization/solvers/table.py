"""Codes that stand for the values of a table: one table a linear, fitted to its weights, times a scale a group.

    ŵ_ij = s_iG · c_q(ij)        c_1 ≤ … ≤ c_K, K = 2^b fp16 values a linear;  s in 6 bits (LogScale), no zero point

    min over c, s, q of   Σ_ij h_j (w_ij − ŵ_ij)²    over the weights that are not kept

h_j is the diagonal of the Hessian, how much column j is read, or 1.  Scales and table take turns: at fixed scales the
table is the weighted k-means of w / s under h · s² (quantization/solvers/kmeans.py), on a part of the rows of a large
linear; at a fixed table each group takes the best of some steps of its scale around its largest |w|.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat

from core.errors import UserError
from core.lazy import torch
from core.types import LayerPlan
from quantization.solvers.grid import Grid, LogScale
from quantization.solvers.kmeans import weighted_kmeans

TURNS = 8  # of table and scales
STEPS = range(-1, 7)  # eighths of an octave below a group's largest |w| that its scale may take: 1.09 to 0.59 of it
SAMPLE = 2**15  # weights that a table is fitted to, in whole rows
TOGETHER = 2**22  # weights of which scales are tried at once


@dataclass(frozen=True, eq=False)
class TableGrid(Grid):
    """The points scale · table; ``zero`` is all zeros."""

    table: torch.Tensor = field(kw_only=True)  # float32 [K], ascending

    @cached_property
    def midpoints(self) -> torch.Tensor:
        """Float32 [K − 1]: a code counts how many of them w / s lies above."""
        return (self.table[1:] + self.table[:-1]) / 2

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes of the nearest points, whole numbers in float32; half-way goes to the lower one."""
        return torch.bucketize(weight / self.divisor, self.midpoints, out_int32=True).float()

    def values_(self, codes: torch.Tensor) -> torch.Tensor:
        """The weights that ``codes`` stand for."""
        return self.table.index_select(0, codes.int().flatten()).view(codes.shape) * self.scale


@dataclass(frozen=True, eq=False)
class Table:
    """The table of one linear and what its groups' scales are chosen by."""

    values: torch.Tensor  # float32 [K], ascending, fp16 numbers
    logs: LogScale
    importance: torch.Tensor  # float32 [in], of each column

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What is stored of a linear besides codes and scales' codes."""
        return {"table": self.values} | self.logs.parts

    def grid(self, scale: torch.Tensor) -> TableGrid:
        """These points times ``scale``."""
        return TableGrid(scale, torch.zeros_like(scale), len(self.values) - 1, table=self.values)

    def fitted(self, groups: torch.Tensor, free: torch.Tensor | None, importance: torch.Tensor) -> TableGrid:
        """The grid of the best scale, float32 [out, ..., 1], of each of ``groups`` [out, ..., g]; the first of equals.

        free: bool, of the groups' shape, the weights that are not kept; None: all.  importance: [1, G, g] or [g].
        """
        rows = max(1, TOGETHER * len(groups) // max(1, groups.numel()))
        parts = zip(groups.split(rows), repeat(None) if free is None else free.split(rows))
        return self.grid(torch.cat([self._scales(some, inside, importance) for some, inside in parts]))

    def _scales(self, groups: torch.Tensor, free: torch.Tensor | None, importance: torch.Tensor) -> torch.Tensor:
        weights = importance if free is None else importance * free
        largest = self.logs.codes((groups if free is None else groups * free).abs().amax(-1, keepdim=True))
        scale = least = None
        for step in STEPS:
            tried = self.logs.values((largest - step).clamp_(0, self.logs.last))
            grid = self.grid(tried)
            error = (grid.values_(grid.codes(groups)).sub_(groups).square_() * weights).sum(-1, keepdim=True)
            better = None if scale is None else error < least
            scale = tried if scale is None else torch.where(better, tried, scale)
            least = error if least is None else torch.minimum(error, least)
        return scale

    def of_group(self, columns: torch.Tensor, keep: torch.Tensor | None, importance: torch.Tensor) -> TableGrid:
        """The same of one group as the column loop has it, ``columns`` and ``keep`` [g, out]: scales [out]."""
        free = None if keep is None else ~keep.t()
        return self.grid(self.fitted(columns.t().contiguous(), free, importance).scale[:, 0])


def fit_table(weight: torch.Tensor, layer: LayerPlan, importance: torch.Tensor | None = None) -> Table:
    """The table of a linear ``weight`` float32 [out, in] of form "table"; importance: float32 [in] >= 0, or None = 1.

    Raises UserError where groups of the linear have bits of their own, which would need a table each.
    """
    if layer.group_bits is not None:
        raise UserError("a table serves all groups of a linear, but this row gives groups bits of their own; leave "
                        "scales=table out")
    cols = weight.shape[1]
    size = min(layer.group_size, cols)
    keep = None if layer.keep is None else torch.as_tensor(layer.keep, device=weight.device)
    importance = weight.new_ones(cols) if importance is None else importance.to(weight)
    largest = float((weight if keep is None else weight.masked_fill(keep, 0.0)).abs().max())
    table = Table(weight.new_empty(0), LogScale.over(largest, layer.scale_bits), importance)
    some = slice(None, None, -(-weight.numel() // SAMPLE))
    groups, h = _grouped(weight[some], size), _grouped(importance[None], size)
    free = None if keep is None else _grouped(~keep[some], size)
    scale = table.logs.up((groups if free is None else groups * free).abs().amax(-1, keepdim=True))
    for turn in range(TURNS):
        spread = (h * scale.square()).expand_as(groups)
        spread = spread if free is None else spread * free
        points = weighted_kmeans((groups / scale).reshape(1, -1), spread.reshape(1, -1), 2**layer.bits)
        table = replace(table, values=points[0].half().float())
        if turn + 1 < TURNS:
            scale = table.fitted(groups, free, h).scale
    return table


def _grouped(weight: torch.Tensor, size: int) -> torch.Tensor:
    """[rows, in] as [rows, G, g], a ragged last group filled with zeros (of bools: with False)."""
    rest = -weight.shape[1] % size
    return torch.nn.functional.pad(weight, (0, rest)).reshape(len(weight), -1, size)
