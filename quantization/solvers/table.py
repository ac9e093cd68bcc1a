"""Codes that stand for the values of a table: one table a linear, fitted to its weights, times a scale a group.

    ŵ_ij = s_iG · c_q(ij)        c_1 ≤ … ≤ c_K, K = 2^b fp16 values a linear;  s in 6 bits (LogScale), no zero point

    min over c, s, q of   Σ_ij h_j (w_ij − ŵ_ij)²    over the weights that are not kept

h_j is how much column j is read, the diagonal of the damped Hessian, or 1.  A few columns may hold most of Σ h, so
every weight is read, none is drawn.  Scales and table take turns: at fixed scales the table is the weighted k-means
(quantization/solvers/kmeans.py) of w / s under h · s², counted in fine bins, in whole numbers so that the order of
summing is no chance; at a fixed table each group takes the best of some steps of its scale around its largest |w|.
A group of zeros has scale 0, the code 0 of the form's scales.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat

from core.errors import UserError
from core.lazy import torch
from core.types import LayerPlan
from quantization.solvers.grid import Grid, LogScale, grouped, nonzero
from quantization.solvers.kmeans import weighted_kmeans

TURNS = 6  # of table and scales
STEPS = range(-1, 7)  # eighths of an octave below a group's largest |w| that its scale may take: 1.09 to 0.59 of it
REACH, BINS = 2.0, 2**14  # w / s lies inside ±REACH, for no scale is below half the largest |w|
TOGETHER = 2**17, 2**24  # weights at once: on a CPU they stay in the cache, a GPU waits for launches
FEW = 32  # points
UNIT = 2**20  # of a bin's count: the largest h · s² is so many


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
        rows = _rows(groups)
        parts = zip(groups.split(rows), repeat(None) if free is None else free.split(rows))
        return self.grid(torch.cat([self._scales(some, inside, importance) for some, inside in parts]))

    def _scales(self, groups: torch.Tensor, free: torch.Tensor | None, importance: torch.Tensor) -> torch.Tensor:
        weights = importance if free is None else importance * free
        widest = _widest(groups, free)
        largest = self.logs.codes(widest)
        scale = least = None
        for step in STEPS:
            tried = self.logs.values((largest - step).clamp_(1, self.logs.last))
            error = (self._errors(groups / tried) * weights).sum(-1, keepdim=True) * tried.square()
            better = None if scale is None else error < least
            scale = tried if scale is None else torch.where(better, tried, scale)
            least = error if least is None else torch.minimum(error, least)
        return scale.masked_fill_(widest == 0, 0.0)

    def _errors(self, weight: torch.Tensor) -> torch.Tensor:
        """Squared distances of ``weight`` from the nearest points at scale 1."""
        if len(self.values) > FEW:
            grid = self.grid(weight.new_ones(()))
            return grid.values_(grid.codes(weight)).sub_(weight).square_()
        least = None
        for value in self.values.tolist():  # no codes are needed, and a few minima are faster than a search
            error = (weight - value).square_()
            least = error if least is None else torch.minimum(least, error, out=least)
        return least

    def of_group(self, columns: torch.Tensor, keep: torch.Tensor | None, importance: torch.Tensor) -> TableGrid:
        """The same of one group as the column loop has it, ``columns`` and ``keep`` [g, out]: scales [out]."""
        free = None if keep is None else ~keep.t()
        return self.grid(self.fitted(columns.t().contiguous(), free, importance).scale[:, 0])


def fit_table(weight: torch.Tensor, layer: LayerPlan, importance: torch.Tensor | None = None) -> Table:
    """The table of a linear ``weight`` float32 [out, in] of form "table"; importance: float32 [in] >= 0, or None = 1.

    Raises UserError for weights that are not finite, and where groups of the linear have bits of their own, which would
    need a table each.
    """
    if layer.group_bits is not None:
        raise UserError("a table serves all groups of a linear, but this row gives groups bits of their own; leave "
                        "scales=table out")
    if not torch.isfinite(weight).all():
        raise UserError("weights that a table is to be fitted to hold NaN or infinity; the model is broken, load it "
                        "again")
    importance = weight.new_ones(weight.shape[1]) if importance is None else importance.to(weight)
    keep = None if layer.keep is None else torch.as_tensor(layer.keep, device=weight.device)
    groups, h = (grouped(t, layer.group_size, zero_pad=True) for t in (weight, importance[None]))
    free = None if keep is None else grouped(~keep, layer.group_size, zero_pad=True)
    widest = _widest(groups, free)
    table = Table(weight.new_empty(0), LogScale.over(float(widest.max()), layer.scale_bits), importance)
    scale = table.logs.up(widest)
    points = (torch.arange(BINS, device=weight.device) + 0.5) * (2 * REACH / BINS) - REACH
    for turn in range(TURNS):
        counts = _counts(groups, free, scale, h)
        centers = weighted_kmeans(points[None], counts[None].float(), 2**layer.bits)
        table = replace(table, values=centers[0].half().float())
        if turn + 1 < TURNS:
            scale = table.fitted(groups, free, h).scale
    return table


def _widest(groups: torch.Tensor, free: torch.Tensor | None) -> torch.Tensor:
    """The largest |w| of each group that is not kept, [..., 1]."""
    return (groups if free is None else groups * free).abs().amax(-1, keepdim=True)


def _counts(groups: torch.Tensor, free: torch.Tensor | None, scale: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Σ h · s² of the weights in each bin of w / s, in units of the largest there is over UNIT: int64 [BINS]."""
    total = torch.zeros(BINS, dtype=torch.int64, device=groups.device)
    most = float((h.amax(-1, keepdim=True) * scale.square()).max())
    rows = _rows(groups)
    for at in (slice(start, start + rows) for start in range(0, len(groups), rows)):
        spread = (h * (scale[at].square() * (UNIT / most if most else 0.0))).round_()
        spread = spread.expand_as(groups[at]) if free is None else spread * free[at]
        bins = (groups[at] / nonzero(scale[at])).add_(REACH).mul_(BINS / (2 * REACH)).clamp_(0, BINS - 1).int()
        total.index_add_(0, bins.flatten(), spread.flatten().long())
    return total


def _rows(groups: torch.Tensor) -> int:
    """How many rows are looked at at once."""
    return max(1, TOGETHER[groups.is_cuda] * len(groups) // max(1, groups.numel()))
