"""--calib auto: how much of the calibration the task gets, by whether it and general text strain the same linears.

    t_l = Σ over the documents of ‖∂loss/∂W_l‖²          a linear's trace, once on the task and once on c4
    a   = max(0, Pearson correlation over the linears of log t(task) and log t(c4))
    share of the task = 1 − a / 2, to the nearest eighth; the rest is c4

Where both strain the same linears, general text says the same and steadies the estimate: half and half.  Where they do
not, it speaks of other linears: the task alone.  The idea, a mixture chosen by the alignment of gradient traces, is
TASA's (arXiv 2607.00908); the formula is ours, and its limits are in docs/METHODS.md.
"""

import json
from dataclasses import dataclass

import numpy as np

from core.calibration import CalibChoice
from core.digest import write_json
from harness.stages.case import Case
from harness.stages.gradients import gradients, gradients_key
from harness.store.entry import Content, stage_key

VERSION = 1
STEPS = 8  # shares are eighths: the mixture of a rerun is the same one
KIND = "square"


@dataclass(frozen=True)
class Alignment:
    """What was chosen and why."""

    share: float  # of the task, 0.5 to 1
    correlation: float  # of the log traces, -1 to 1; 0 where it is not defined

    @property
    def choice(self) -> CalibChoice:
        return CalibChoice("task", 1.0) if self.share == 1 else CalibChoice("mix", self.share)


def alignment(case: Case) -> Alignment | None:
    """The row's choice, from the store or from two backward passes; None where nothing may be computed yet."""
    pair = [case.calibrated_on(text) for text in ("task", "c4")]
    key, identity = stage_key("alignment", VERSION, gradients=[gradients_key(one, KIND)[0] for one in pair])
    if case.store.get(key) is None and not case.computes:
        return None

    def compute(_partial) -> Content:
        chosen = align(*(traces(one) for one in pair))
        return Content(lambda folder: write_json(folder / "alignment.json", vars(chosen)), {"model": case.model.label})

    return Alignment(**json.loads((case.store.make(key, identity, compute) / "alignment.json").read_text()))


def traces(case: Case) -> np.ndarray:
    """Σg² of every linear, float64, in the model's order."""
    sums = gradients(case, KIND)
    return np.array([float(sums[fqn].double().sum()) for fqn in case.model.shapes])


def align(task: np.ndarray, general: np.ndarray) -> Alignment:
    """The choice that two vectors of traces lead to."""
    logs = np.log(np.maximum([task, general], np.finfo(float).tiny))
    constant = np.ptp(logs, axis=1).min() == 0
    correlation = 0.0 if constant else float(np.corrcoef(logs)[0, 1])
    return Alignment(round((1 - max(0.0, correlation) / 2) * STEPS) / STEPS, correlation)


def words(chosen: Alignment) -> str:
    """The choice in words, for a result and the line below a table."""
    what = "the task alone" if chosen.share == 1 else f"mix:{chosen.share:g}"
    return f"{what} (traces on task and c4 correlate {chosen.correlation:.2f})"
