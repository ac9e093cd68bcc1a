"""GPTQ: one solver for every grid, as pure functions of a weight and a Hessian.

The column loop of quantization/solvers/columns.py with λ = percdamp · mean(diag H), over the integer grid of
quantization/solvers/grid.py, or over the values of a table (quantization/solvers/table.py); a group's range is the best
of several factors on its [min, max].  With a ``discount`` the Hessian is shrunk towards its diagonal first.

Paper: arXiv 2210.17323, Eq. 2–3 and Algorithm 1.  One factor serves every linear that reads the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

from core.errors import UserError
from core.lazy import torch
from core.registry import quantizer
from core.settings import Setting
from core.storage import SYMMETRIC
from core.types import Aid, LayerPlan, Stored
from quantization.kernels.columns import quantize_group, runs_fused
from quantization.solvers.columns import BLOCK, Groups, column_major, feed_back, slices
from quantization.solvers.grid import (
    LOGARITHMIC,
    Grid,
    LogScale,
    around_zero,
    best_range,
    ends,
    log_scale,
    without_kept,
)
from quantization.solvers.kept import Float8, kept_values, through
from quantization.solvers.table import Table, fit_table
from quantization.tuning import TUNE
from streams.hessians import DISCOUNT, PERCDAMP, Factor, discounted, factorise

PLAIN = (1.0,)

COARSE = tuple(1 - i / 25 for i in range(16))  # 1.00, 0.96 ... 0.40

PUBLISHED = tuple(1 - i / 100 for i in range(80))  # 1.00, 0.99 ... 0.21


@dataclass(frozen=True)
class Solver:
    """How a linear is solved; the defaults are those of the common table."""

    percdamp: float = 0.01
    discount: float = 0.0  # share by which correlations of inputs count less
    symmetric: bool = False
    shrinks: tuple[float, ...] = COARSE  # factors on [min, max] tried for the least Σ|w−q|^norm a row
    norm: float = 2.4
    act_order: bool = False  # columns by falling diag H instead of as they stand
    static_groups: bool = False  # scales from the weights before any update, groups over the columns as they stand
    stored: bool = True  # scales at fp16 and kept weights at 16 bits, as counted; False = float32, as published
    kept_dtype: torch.dtype | None = None  # the 16-bit dtype of kept weights; None = bfloat16
    float8: Float8 | None = None  # kept weights in 8 bits; made of the linear
    logs: LogScale | None = None  # scales of the form "log"; made of the linear
    table: Table | None = None  # of the form "table"; made of the linear
    stale: bool = False  # published: groups that begin inside a block of 128 columns are fitted before its updates

    def kept(self, weight: torch.Tensor) -> torch.Tensor:
        """What is stored of a weight that is kept, as float32."""
        if self.float8 is not None:
            return self.float8.through(weight)
        return through(weight, self.kept_dtype) if self.stored else weight


def solve(weight: torch.Tensor, hessian: torch.Tensor, layer: LayerPlan, how: Solver = Solver(), *,
          shared: dict | None = None, what: str = "a linear") -> Stored:
    """Quantize one linear.

    weight: float32 [out, in]; hessian: float32 [in, in], undamped; layer: bits of 1..8 or ``group_bits``, group size
    (>= in: one scale a row; a ragged last group is allowed), ``keep`` mask [out, in].  ``shared`` holds the factor for
    linears that read the same input.  Kept weights stretch no scale, receive the updates of earlier columns, and
    pass nothing on.  Raises UserError when the Hessian is not finite or cannot be factorised.
    """
    how = replace(how, float8=Float8.of(weight, layer), symmetric=how.symmetric or layer.zero_bits == 0)
    if layer.form in LOGARITHMIC and not how.stored:
        raise UserError(f"--published keeps scales as float32 and scales={layer.form} stores 6 bits of them; leave one "
                        "out")
    order, factor = _ordered_factor(hessian, how, {} if shared is None else shared, what=what)
    if layer.form == "log":
        how = replace(how, logs=log_scale(weight, layer))
    elif layer.form == "table":
        how = replace(how, table=fit_table(weight.float(), layer, hessian.diagonal() + factor.damp))
    columns, groups = column_major(weight), Groups(layer, weight.shape[1])
    keep = None if layer.keep is None else torch.as_tensor(layer.keep, device=weight.device).t().contiguous()
    loop = _Columns(columns, keep, groups, how=how)
    if how.static_groups or (how.stale and len(groups.spans) == 1):  # before dead columns are cleared, as published
        loop.fit_groups(range(len(groups.spans)))
    if order is not None:
        loop.permute(order)
    if how.table is None:  # a table need not have a 0: there a dead input's weights are rounded as they are
        loop.columns[factor.dead] = 0.0
    blocks = [[block] for block in slices(len(columns), BLOCK if how.stale else groups.block())]
    loss = feed_back(loop.columns, factor.upper, blocks, quantize=loop.quantize,
                     at_once=loop.with_kernel(factor) if runs_fused(weight.device) else None)
    return loop.stored(layer, order, {"damp": factor.damp, "tries": factor.tries, "loss": float(loss)})


def _ordered_factor(hessian: torch.Tensor, how: Solver, shared: dict, what: str):
    """(column order or None, factor of the Hessian in that order), once for all linears that share the input."""
    key = ("gptq", how.percdamp, how.discount, how.act_order)
    if key not in shared:
        hessian = discounted(hessian, how.discount)
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if how.act_order else None
        shared[key] = order, factorise(hessian if order is None else hessian[order][:, order], how.percdamp, what)
    return shared[key]


@dataclass
class _Columns:
    """One linear on its way through the column loop; ``columns`` [in, out] becomes ŵ."""

    columns: torch.Tensor
    keep: torch.Tensor | None  # bool [in, out]
    groups: Groups
    how: Solver
    grids: dict[int, Grid] = field(default_factory=dict)  # by group

    def __post_init__(self):
        self.codes = torch.zeros_like(self.columns, dtype=torch.uint8)
        self.importance = None if self.how.table is None else self.how.table.importance
        self.group_of = (torch.arange(len(self.columns)) // self.groups.size).tolist()

    def permute(self, order: torch.Tensor) -> None:
        """Put the columns in ``order``; static groups stay with their columns, others run over the new order."""
        self.columns, self.keep = self.columns[order], None if self.keep is None else self.keep[order]
        self.importance = None if self.importance is None else self.importance[order]
        if self.how.static_groups:
            self.group_of = [self.group_of[column] for column in order.tolist()]

    def fit_groups(self, numbers) -> None:
        """Fit the groups named, those that have no grid yet, to the weights as they are now."""
        for number in numbers:
            if number not in self.grids:
                span, bits = self.groups.spans[number], self.groups.bits[number]
                keep = None if self.keep is None else self.keep[span]
                if self.how.table is None:
                    self.grids[number] = fit(self.columns[span], keep, bits, how=self.how)
                else:
                    self.grids[number] = self.how.table.of_group(self.columns[span], keep, self.importance[span])

    def quantize(self, j: int, column: torch.Tensor) -> torch.Tensor:
        """ŵ of column ``j``; its group is fitted when its first column comes up, stale ones when their block does."""
        if self.how.stale and j % BLOCK == 0:
            self.fit_groups(self.group_of[j:j + BLOCK])
        number = self.group_of[j]
        if number not in self.grids:
            self.fit_groups([number])
        grid = self.grids[number]
        codes = grid.codes(column)
        self.codes[j] = codes
        value = grid.values_(codes)
        if self.keep is None:
            return value
        return torch.where(self.keep[j], self.how.kept(column), value)

    def with_kernel(self, factor: Factor) -> Callable[[slice, slice, torch.Tensor], None]:
        """What :meth:`quantize` does, for all columns of a span at once."""
        pivots, how = factor.diagonal.contiguous(), self.how
        stored = how.float8 or (how.kept_dtype or torch.bfloat16 if how.stored else None)

        def quantize(block: slice, span: slice, errors: torch.Tensor) -> None:
            if how.stale:
                self.fit_groups(self.group_of[block])
            for group, grid in self._runs(span):
                quantize_group(self.columns, factor.upper, pivots, grid, self.codes, errors, block=block, group=group,
                               keep=self.keep, stored=stored)
        return quantize

    def _runs(self, span: slice) -> Iterator[tuple[slice, Grid]]:
        """Columns that one launch of the kernel takes and their grid: a group, fitted now, or all of the span where
        each column brings the grid of a static group.
        """
        numbers = self.group_of[span]
        if self.how.static_groups and len(set(numbers)) > 1 and len({self.grids[n].top for n in numbers}) == 1:
            scale, zero = (torch.stack([getattr(self.grids[n], part) for n in numbers]) for part in ("scale", "zero"))
            yield span, replace(self.grids[numbers[0]], scale=scale, zero=zero)
            return
        for number, run in groupby(range(span.start, span.stop), key=self.group_of.__getitem__):
            run = list(run)
            self.fit_groups([number])
            yield slice(run[0], run[-1] + 1), self.grids[number]

    def stored(self, layer: LayerPlan, order: torch.Tensor | None, notes: dict) -> Stored:
        """What came out, columns in their own order again."""
        back = slice(None) if order is None else torch.argsort(order)
        grids = [self.grids[number] for number in range(len(self.groups.spans))]
        scale, zero = torch.stack([g.scale for g in grids], 1), torch.stack([g.zero for g in grids], 1)
        regrouped = order is not None and not self.how.static_groups and len(grids) > 1
        values, codes = (t[back].t().contiguous() for t in (self.columns, self.codes))
        parts = {"codes": codes, "scale": scale, "zero": zero} | ({"order": order} if regrouped else {})
        if form := self.how.table or self.how.logs:
            parts |= form.parts
        else:
            layer = replace(layer, scale_bits=16 if self.how.stored else 32)
        layer = replace(layer, ordered=regrouped)
        kept = kept_values(values, layer.keep, self.how.kept_dtype, self.how.float8)
        return Stored(values, layer, parts | kept, notes=notes)


def fit(columns: torch.Tensor, keep: torch.Tensor | None, bits: int, how: Solver) -> Grid:
    """The grid of each row, scale and zero point float32 [out], for a group of ``columns`` [g, out].

    Kept weights are replaced by the mean of the row's others, so that they do not stretch the range; min ≤ 0 ≤ max.
    The first of equally good ``shrinks`` wins.
    """
    columns = without_kept(columns, keep)
    low, high = ends(columns)
    if how.symmetric:
        low, high = around_zero(low, high)
    return best_range(columns, low, high, top=2**bits - 1, factors=how.shrinks, power=how.norm, stored=how.stored,
                      symmetric=how.symmetric, logs=how.logs)


SEARCHES = {"none": PLAIN, "coarse": COARSE, "published": PUBLISHED}


SEARCH = Setting("search", str, "coarse", "ranges tried for the least error of a row's group: none, a coarse grid, or "
                 "the published one", choices=tuple(SEARCHES), flag=False)
ACT_ORDER = Setting("act_order", bool, False, "columns by falling diagonal of the Hessian", flag=False)
STATIC_GROUPS = Setting("static_groups", bool, False, "scales from the weights before any update", flag=False)


@quantizer("gptq", needs=("hessian",), options=(SEARCH, ACT_ORDER, STATIC_GROUPS, SYMMETRIC, PERCDAMP, DISCOUNT, TUNE))
def gptq(weight: torch.Tensor, layer: LayerPlan, aid: Aid) -> Stored:
    """GPTQ on the common grid, linears one input after the other.

    "published" puts the public code's float32 scales and stale groups in.  ``tune`` is read after the last linear
    (quantization/tuning.py).
    """
    named = {k: aid.options[k] for k in ("act_order", "static_groups", "symmetric", "percdamp", "discount")
             if k in aid.options}
    published = bool(aid.options.get("published"))
    how = Solver(shrinks=SEARCHES[SEARCH.of(aid.options)], stored=not published, stale=published,
                 kept_dtype=aid.kept_dtype, **named)
    return solve(weight, aid.hessian, layer, how=how, shared=aid.shared, what=aid.fqn)
