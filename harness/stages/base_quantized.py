"""The base level of a row, and the model quantized at it, with which TaCQ compares."""

import torch
from safetensors.torch import save_file

from core.offload import copied, scratch_of
from core.registry import QUANTIZERS
from core.storage import SCALES, STORED_SCALES
from core.types import Budget, LayerPlan
from harness.stages.case import Case
from harness.stages.options import VERSIONS, quantizer_options
from harness.store.entry import Content, stage_key
from harness.store.partial import Partial
from harness.store.solved_blocks import SolvedBlocks
from harness.store.tensors import load_tensors
from quantization.bits import stored_grid, uniform_bits
from quantization.tuning import TUNE

STORED = ("scale_bits", "zero_bits", "table")  # what a level may tell of its grid


def base(case: Case) -> dict:
    """How every linear is stored before any weight is kept.

    Common rows: the highest level that the budget affords everywhere, on the common grid.  Native rows: their N bits
    and group.
    """
    options = case.method.options
    if case.method.native and "bits" in options:
        return {"bits": options["bits"], "group": options.get("group")} | STORED_SCALES[SCALES.of(options)]
    return case.once("base", lambda: _common_base(case))


def _common_base(case: Case) -> dict:
    budget, shapes = case.budget, case.model.shapes
    total = budget.avg_bits * case.model.weights
    fits = [bits for bits in budget.levels if bits < 16 and uniform_bits(bits, shapes, budget) <= total]
    return {"bits": max(fits, default=min(budget.levels)), "group": budget.group_size} | own_grid(budget)


def own_grid(budget: Budget) -> dict:
    """How a budget's grid is stored, in keys: what is not as in every other's."""
    told = {name: getattr(budget, name) for name in STORED}
    return {name: value for name, value in told.items() if value != getattr(Budget, name)}


def base_layer(level: dict, shape: tuple[int, int]) -> LayerPlan:
    """The LayerPlan of :func:`base` for one linear; no group = one scale a row."""
    told = {name: level[name] for name in STORED if name in level}
    return stored_grid(level["bits"], level["group"] or shape[1], **told)


def corrupting(case: Case) -> dict:
    """By which quantizer the model to compare with is made; a native row's own search and quirks, if it has any."""
    name = case.value("corrupt")
    options = {key: value for key, value in quantizer_options(case, name).items() if key != TUNE.name}
    return {"quantizer": QUANTIZERS.identity(name), "options": options}


def base_quantized_key(case: Case) -> tuple[str, dict]:
    """Digest of the model to compare with."""
    return stage_key("corrupted", VERSIONS["weights"], model=case.model.ref.key, base=base(case),
                     corrupt=corrupting(case), calib=case.solver_calib_digest, machine=case.model.machine)


def base_quantized(case: Case) -> dict[str, torch.Tensor]:
    """ŵ of every linear at the base level, on the CPU in the model's dtype; the model is as loaded afterwards."""
    def compute(partial: Partial) -> Content:
        with case.memory("the model to compare with is quantized"):
            values = _quantize(case, SolvedBlocks(partial))
        return Content(lambda folder: save_file(values, folder / "weights.safetensors"), {"model": case.model.label})

    return load_tensors(case.store.make(*base_quantized_key(case), compute) / "weights.safetensors")


def _quantize(case: Case, keeper: SolvedBlocks) -> dict[str, torch.Tensor]:
    model, by, step = case.model, corrupting(case), case.progress.stage("the quantized model to compare with")
    layers, name = {fqn: base_layer(base(case), shape) for fqn, shape in model.shapes.items()}, by["quantizer"][0]
    if QUANTIZERS.get(name).needs:
        model.originals.solve(layers, name, model=model.module, blocks=model.blocks, block_of=model.block_of,
                              calib=case.solver_calib, options=by["options"], step=step, keeper=keeper)
    else:
        model.originals.restore()
        model.originals.write(layers, name, step)
    scratch = scratch_of(model.module)
    values = {fqn: copied(linear.weight.detach(), scratch) for fqn, linear in model.linears.items()}
    model.originals.restore()
    return values
