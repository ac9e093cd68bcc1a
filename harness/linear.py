"""One linear of a model under TaCQ, measured: its weights before and after, which of them are kept and why, and what a
level of bits costs it.

Scores, gradients, plan and weights come out of the same stages and the same store as a grid's.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import torch

from core.environment import versions
from core.errors import UserError, did_you_mean
from core.types import LayerPlan
from harness.api import Quantized, quantize
from harness.stages.base_quantized import base, base_quantized
from harness.stages.gradients import gradients
from harness.stages.options import published_quantizer
from methods.tacq import localization, saliency, sharpened
from quantization.bits import layer_bits
from quantization.solvers.rtn import dequantized
from report.measured import EXAMPLE, GRID, LEVEL, Linear

BINS = 96
BEST, OTHERS = 6, 3  # weights that are taken apart: those of the highest scores, and some evenly below
SHARES = (0.0001, 0.001, 0.0035, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
METHOD = "TaCQ"
LEVELS = (2, 3, 4, 5, 6, 8)


def measure(asked: dict, **machine) -> Linear:
    """Quantize a model by TaCQ and look at one of its linears.

    asked: "model", "dataset", "avg_bits", "linear" (its full name, or the end of one that no other has), and the
    fields report.measured.GRID; machine: fields that say where and how it runs.  Raises UserError for what cannot be.
    """
    grid = {name: asked[name] for name in GRID if name in asked} | machine
    small = quantize(asked["model"], METHOD, asked["dataset"], asked["avg_bits"], **grid)
    case = small.case
    fqn = one_linear(asked["linear"], list(case.model.shapes))
    held = case.model.linears[fqn].weight.detach().float().cpu()
    case.model.originals.restore()
    weight = case.model.linears[fqn].weight.detach().float().cpu()
    gradient, corrupt = gradients(case, "abs")[fqn], base_quantized(case)[fqn].float()
    score = saliency(weight, gradient, corrupt)
    edges, loaded, quantized = histogram(weight, held)
    calib = case.solver_calib
    return Linear(
        asked=asked, model=case.model.ref.name, revision=case.model.ref.revision, dtype=case.model.ref.dtype,
        dataset=case.cell.dataset, quantizer=published_quantizer(case) or "", linear=fqn, shape=list(weight.shape),
        bits=small.plan.layers[fqn].bits, group_size=base(case)["group"], average=small.bits.average,
        documents=len(calib.tokens), tokens=sum(map(len, calib.tokens)), **_counts(small), edges=edges, loaded=loaded,
        quantized=quantized, kept=_positions(small.plan.layers[fqn]), ranks=concentration(score),
        examples=examples(weight, corrupt, gradient, score=score, keep=small.plan.layers[fqn].keep),
        levels=levels(weight, gradient, base(case)["group"]), versions=versions(),
        made=datetime.now(UTC).isoformat(timespec="seconds"))


def one_linear(name: str, names: list[str]) -> str:
    """The linear of that name; UserError if there is none, or several."""
    fits = [fqn for fqn in names if fqn == name] or [fqn for fqn in names if fqn.endswith(name)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise UserError(f"--linear {name!r} is the end of {len(fits)} names, such as {fits[0]}; give a whole one")
    raise UserError(f"--linear {name!r} is no linear of this model{did_you_mean(name, names)}; its linears are "
                    f"{names[0]} to {names[-1]}")


def histogram(weight: torch.Tensor, held: torch.Tensor) -> tuple[list[float], list[int], list[int]]:
    """Edges of BINS equal bins over all values, and how many weights lie in each before and after."""
    low, high = float(min(weight.min(), held.min())), float(max(weight.max(), held.max()))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = [np.histogram(values.numpy(), bins=edges)[0].tolist() for values in (weight, held)]
    return edges.tolist(), *counts


def concentration(score: torch.Tensor) -> list[list[float]]:
    """Which share of the summed score the best weights hold, by their share of the linear's weights."""
    falling = score.flatten().double().sort(descending=True).values.cumsum(0)
    total, count = float(falling[-1]), len(falling)
    places = dict.fromkeys(max(1, round(share * count)) for share in SHARES)
    return [[place / count, float(falling[place - 1]) / total if total else 0.0] for place in places]


def examples(weight: torch.Tensor, corrupt: torch.Tensor, gradient: torch.Tensor, *, score: torch.Tensor,
             keep: np.ndarray | None) -> list[dict]:
    """Single weights with every factor of the formula: the BEST of the highest score, then OTHERS evenly below."""
    order = score.flatten().argsort(descending=True, stable=True)
    below = [round(i * (len(order) - 1) / OTHERS) for i in range(1, OTHERS + 1)]
    columns, parts = weight.shape[1], (localization(weight, gradient, corrupt), sharpened(weight, gradient))
    told = []
    for at in [int(order[i]) for i in dict.fromkeys([*range(min(BEST, len(order))), *below])]:
        row, column = divmod(at, columns)
        values = [float(of[row, column]) for of in (weight, corrupt, gradient, *parts, score)]
        told.append(dict(zip(EXAMPLE, [row, column, *values, bool(keep is not None and keep[row, column])],
                             strict=True)))
    return told


def levels(weight: torch.Tensor, gradient: torch.Tensor, group: int) -> list[dict]:
    """What each level of bits costs this linear, rounded to nearest on the row's grid without kept weights."""
    told, norm = [], float(weight.double().square().sum())
    for bits in LEVELS:
        plan = LayerPlan(bits, group)
        moved = (weight - dequantized(weight, plan)).double()
        values = (bits, layer_bits(plan, tuple(weight.shape)) / weight.numel(),
                  float(moved.square().sum()) / norm if norm else 0.0, float((gradient.double() * moved.abs()).sum()))
        told.append(dict(zip(LEVEL, values, strict=True)))
    return told


def _positions(layer: LayerPlan) -> list[int]:
    return [] if layer.keep is None else np.flatnonzero(layer.keep).tolist()


def _counts(small: Quantized) -> dict:
    kept = sum(int(layer.keep.sum()) for layer in small.plan.layers.values() if layer.keep is not None)
    return {"kept_in_model": kept, "weights_in_model": small.case.model.weights}
