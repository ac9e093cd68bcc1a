"""The quantized model that TaCQ compares with, and the base level of a row."""

import torch
from safetensors.torch import save_file

from core.registry import QUANTIZERS
from core.types import LayerPlan
from harness.grid import Cell
from harness.progress import Progress
from harness.stages.case import solver_memory
from harness.stages.documents import CellData, solver_calib
from harness.stages.model import Session
from harness.stages.options import VERSIONS, quantizer_options
from harness.store.solved_blocks import SolvedBlocks
from harness.store.store import _tensors, stage_key
from quantization.bits import uniform_bits


def base(session: Session, cell: Cell) -> dict:
    """How every linear is stored before any weight is kept.

    Common rows: the highest level that the budget affords everywhere, on the common grid.  Native rows: their N bits and group.
    """
    spec = cell.method
    if spec.native and "bits" in spec.options:
        return {"bits": spec.options["bits"], "group": spec.options.get("group")}
    budget = session.budget(cell.avg_bits)
    total = budget.avg_bits * sum(r * c for r, c in session.shapes.values())
    fits = [b for b in budget.levels if b < 16 and uniform_bits(b, session.shapes, budget) <= total]
    return {"bits": max(fits, default=min(budget.levels)), "group": budget.group_size}


def corrupting(session: Session, cell: Cell) -> dict:
    """By which quantizer the model that TaCQ compares with is made; a native row's own search and quirks, if it has any."""
    name = session.grid.corrupt
    return {"quantizer": [name, QUANTIZERS.get(name).version], "options": quantizer_options(session, cell.method, name)}


def base_layer(found: dict, shape: tuple[int, int]) -> LayerPlan:
    """The LayerPlan of :func:`base` for one linear; no group = one scale a row."""
    return LayerPlan(found["bits"], found["group"] or shape[1])


def corrupted_key(session: Session, cell: Cell, data: CellData) -> tuple[str, dict]:
    """Digest of the quantized model that TaCQ compares with."""
    return stage_key("corrupted", VERSIONS["weights"], model=session.ref.key, base=base(session, cell), corrupt=corrupting(session, cell),
                     calib=solver_calib(session, data, cell.seed)[1], machine=session.machine)


def corrupted(session: Session, cell: Cell, data: CellData, progress: Progress) -> dict[str, torch.Tensor]:
    """ŵ of every linear at the base level by --corrupt, on the CPU in the model's dtype; from the store, or made and the model restored."""
    key, identity = corrupted_key(session, cell, data)
    with session.store.lock(key, "quantized model"):
        entry = session.store.get(key)
        if entry is None:
            with solver_memory(session, "the model to compare with is quantized"):
                values = _corrupt(session, cell, data, progress, SolvedBlocks(session.store.partial(key)))
            entry = session.store.put(key, identity, {"model": session.label}, lambda folder: save_file(values, folder / "weights.safetensors"))
        session.store.partial(key).clear()
        return _tensors(entry / "weights.safetensors")


def _corrupt(session: Session, cell: Cell, data: CellData, progress: Progress, keeper: SolvedBlocks) -> dict[str, torch.Tensor]:
    originals, step, by = session.originals, progress.stage("the quantized model to compare with"), corrupting(session, cell)
    layers = {fqn: base_layer(base(session, cell), shape) for fqn, shape in session.shapes.items()}
    name = by["quantizer"][0]
    if QUANTIZERS.get(name).needs:
        originals.solve(layers, name, model=session.model, blocks=session.blocks, block_of=session.block_of,
                        calib=solver_calib(session, data, cell.seed)[0], options=by["options"], step=step, keeper=keeper)
    else:
        originals.restore()
        originals.write(layers, name, step)
    out = {fqn: lin.weight.detach().to("cpu", copy=True) for fqn, lin in session.linears.items()}
    originals.restore()
    return out
