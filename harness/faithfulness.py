"""What is left of the task when all but a circuit is quantized: the grid behind the faithfulness curves.

For each share of heads and of neurons that stays at 16 bits: the best first, the worst first, in random orders, and
uniform bits at what the best-first row stores (met from below within the grid's tolerance); the rest at the low bits.
Every cell is one of the ordinary grid's, so it is stored and resumed as such; report/tables/faithfulness.py makes the
curves of the results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.errors import UserError
from core.registry import SCORERS
from core.settings import shown
from harness.grid import Grid, cells_of, with_methods
from harness.jobs.launch import run_local
from harness.presets import row_grid
from harness.progress import Progress
from report.records import Result, read_result
from report.tables.faithfulness import ALLOCATOR, RANDOM, is_kept

NO_UNITS = (RANDOM, "LIG-channel")  # scorers of lines that rank no heads by the task
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
NO_BUDGET = 16.0  # of grids whose rows all have bits of their own


@dataclass(frozen=True)
class Asked:
    """Which curves; raises UserError for what cannot be."""

    model: str
    datasets: tuple[str, ...]
    scorer: str = "circuit"
    bits: tuple[int, ...] = (2, 3)  # of what is quantized
    shares: tuple[float, ...] = SHARES
    seeds: tuple[int, ...] = (0, 1, 2)  # of the random orders; the scorer's documents are drawn by the first

    def __post_init__(self):
        if SCORERS.get(self.scorer).granularity != "line" or self.scorer in NO_UNITS:
            raise UserError(f"--scorer is {self.scorer!r}, which scores no heads; use circuit, heads-ablation, "
                            "heads-attribution or heads-EAP-IG")
        if not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"--shares {self.shares} are out of range; give shares above 0 and up to 1, such as 0.1")

    def rows(self, scorer: str, *more: str, shares: tuple[float, ...]) -> tuple[str, ...]:
        """Names of the rows that keep these shares of the units, of heads alone where the scorer knows no others."""
        more += ("units=heads",) if self.scorer.startswith("heads-") else ()
        told = [",".join((f"bits={bits}", *more, f"fp16_ratio={shown(float(share))}")) for bits in self.bits
                for share in shares]
        return tuple(f"{scorer}+{ALLOCATOR}[{inside}]" for inside in told)


def run(asked: Asked, **grid) -> list[Result]:
    """Run every cell of the curves, or find it stored; failed cells are results with status "error"."""
    ranked = asked.rows(asked.scorer, shares=(0, *asked.shares))
    worst = asked.rows(asked.scorer, "first=worst", shares=asked.shares)
    base = row_grid(models=(asked.model,), datasets=asked.datasets, avg_bits=(NO_BUDGET,),
                    seeds=asked.seeds[:1], **grid)
    results = _cells(base, ("fp16", *ranked, *worst))
    stored = {(r.dataset, r.bits.average) for r in results if r.ok and is_kept(r) and r.name != "fp16"
              and r.method.options.get("first") != "worst" and r.method.options["fp16_ratio"]}
    results += _cells(replace(base, seeds=asked.seeds), asked.rows(RANDOM, shares=asked.shares))
    for dataset in asked.datasets:
        bits = tuple(sorted(average for of, average in stored if of == dataset))
        if bits:
            results += _cells(replace(base, datasets=(dataset,), avg_bits=bits), ("uniform",))
    return results


def _cells(grid: Grid, names: tuple[str, ...]) -> list[Result]:
    """The grid of these methods alone, without the controls of a table."""
    grid = with_methods(grid, names)
    with Progress(len(cells_of(grid))) as progress:
        return [read_result(result.file) for result in run_local(grid, None, progress, plugins=[])]
