"""The grid behind the brief's W4A4 plot: a metric over the share of activation channels kept at 16 bits.

One row of 4-bit weights with salient channels, at 16, 8 and 4 bits of activations, the last at every share; beside them
full precision; each on the model as loaded and with every transform that is asked for.  Every cell is one of the
ordinary grid's, so it is stored and resumed as such; report/tables/sweeps.py makes the lines.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.activations import ACT_KEEP, GROUP
from core.method_names import resolve_method
from core.settings import SETTINGS, shown
from harness.api import one_case
from harness.grid import cells_of, with_methods
from harness.jobs.launch import run_local
from harness.presets import row_grid
from harness.progress import Progress
from quantization.bits import activation_bits
from report.records import Result, read_result

METHOD = "W4A4-native"
NO_BUDGET = 16.0  # its rows have bits of their own
WINDOW = 512  # tokens of a calibration document, as published


@dataclass(frozen=True)
class Asked:
    """Which rows; raises UserError for what cannot be."""

    model: str
    dataset: str
    salient: float = 0.01  # share of each linear's input channels whose weights stay at 16 bits
    keeps: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # shares of activation channels
    transforms: tuple[str, ...] = ("none",)

    def __post_init__(self):
        SETTINGS["salient"].checked(self.salient, "--frac_salient_weights")
        for share in self.keeps:
            SETTINGS[ACT_KEEP.name].checked(share, "--frac_salient_activations")

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, full precision first."""
        own = {} if self.salient == SETTINGS["salient"].default else {"salient": self.salient}
        told = [{}, {"act_bits": 8}, *({"act_bits": 4} | ({"act_keep": share} if share else {})
                                       for share in self.keeps)]
        return ("fp16", *(_name(own | one) for one in told))


def moved(asked: Asked, **grid) -> list[dict]:
    """What the linears read for a token, by bits of activations and share kept: bits in all, and a number."""
    case = one_case(asked.model, "fp16", asked.dataset, grid)
    shapes, rows = case.model.shapes, []
    for bits, keep in ((16, 0.0), (8, 0.0), *((4, share) for share in asked.keeps)):
        total = activation_bits(shapes, bits, keep, GROUP)
        rows.append({"bits": bits, "kept": keep, "total": total,
                     "average": total / sum(width for _, width in shapes.values())})
    return rows


def _name(told: dict) -> str:
    inside = ",".join(f"{name}={shown(value)}" for name, value in sorted(told.items()))
    return resolve_method(f"{METHOD}[{inside}]" if inside else METHOD).name


def run(asked: Asked, calib: str, calib_docs: int, **grid) -> list[Result]:
    """Run every cell, or find it stored; failed cells are results with status "error".

    calib: what channels are ranked on, as --calib; calib_docs: how many windows of 512 tokens of it.
    """
    whole = row_grid(models=(asked.model,), datasets=(asked.dataset,), methods=("fp16",), avg_bits=(NO_BUDGET,),
                     transform=asked.transforms, calib=calib, score_docs=calib_docs,
                     calib_tokens=calib_docs * WINDOW, calib_window=WINDOW, **grid)
    whole = with_methods(whole, asked.rows)
    with Progress(len(cells_of(whole))) as progress:
        return [read_result(result.file) for result in run_local(whole, None, progress, plugins=[])]
