"""The weights stage of rows whose quantizer reads data, and the gradients that scorers and quantizers share.

ŵ stays in the model and is made again when a later run needs it; what came out of it is stored: the true plan
(outliers, group bits), damping and loss of every linear.  Consecutive cells with the same weights share them.
What is finished of a solve or of a backward pass outlives a kill (harness/store/solved_blocks.py).
"""

import json
import time
from pathlib import Path

from core.digest import write_json
from core.errors import UserError
from core.registry import QUANTIZERS
from core.types import Plan, Stored
from harness.grid import Cell
from harness.progress import Progress
from harness.stages.case import solver_memory
from harness.stages.documents import CellData, solver_calib
from harness.stages.gradients import gradients, gradients_key
from harness.stages.model import Session
from harness.stages.options import VERSIONS, quantizer_options
from harness.stages.plan import read_plan, write_plan
from harness.store.solved_blocks import SolvedBlocks
from harness.store.store import stage_key
from quantization.bits import check_budget, make_plan


def weights_key(session: Session, cell: Cell, data: CellData, plan_id: str) -> tuple[str, dict]:
    """Digest of the quantized weights of a row whose quantizer reads data."""
    spec = QUANTIZERS.get(cell.method.quantizer)
    read = {"calib": solver_calib(session, data, cell.seed)[1], "options": quantizer_options(session, cell.method, spec.name)}
    if "fisher" in spec.needs:
        read["fisher"] = gradients_key(session, cell, data, "square")[0]
    return stage_key("weights", VERSIONS["weights"], model=session.ref.key, plan=plan_id, quantizer=[spec.name, spec.version],
                     machine=session.machine, **read)


def put_weights(session: Session, cell: Cell, data: CellData, plan_id: str, made: Plan, progress: Progress) -> None:
    """Make the model hold the cell's quantized weights, and store what came out of it."""
    key, identity = weights_key(session, cell, data, plan_id)
    if session.originals.holds == key and (entry := session.store.get(key)):
        _keep_again(session, key, entry)
        return
    with session.store.lock(key, "weights"):  # a second process that needs the same weights waits, and then loads the pieces
        spec, start, keeper = QUANTIZERS.get(cell.method.quantizer), time.perf_counter(), SolvedBlocks(session.store.partial(key))
        fisher = gradients(session, cell, data, "square", progress) if "fisher" in spec.needs else None
        with solver_memory(session, f"{spec.name} solves {cell.method.name}"):
            found = _solve(session, cell, data, made, fisher, progress, keeper)
        del fisher
        true = make_plan({fqn: s.layer for fqn, s in found.items()}, session.shapes, session.other, made.notes)
        if cell.method.budgeted:
            check_budget(true, session.budget(cell.avg_bits), cell.method.name)
        notes = {fqn: s.notes for fqn, s in found.items()}

        def write(folder):
            write_plan(folder, true)
            write_json(folder / "linears.json", notes)

        if session.store.get(key) is None:  # else the weights were only made again
            session.store.put(key, identity, {"model": session.label, "seconds": time.perf_counter() - start + keeper.spent}, write)
        session.originals.holds = key


def _solve(session: Session, cell: Cell, data: CellData, made: Plan, fisher, progress: Progress, keeper: SolvedBlocks) -> dict[str, Stored]:
    return session.originals.solve(made.layers, cell.method.quantizer, model=session.model, blocks=session.blocks, block_of=session.block_of,
                                   calib=solver_calib(session, data, cell.seed)[0], fisher=fisher,
                                   options=quantizer_options(session, cell.method, cell.method.quantizer),
                                   step=progress.stage(f"{cell.method.name}: {cell.method.quantizer}"), keeper=keeper)


def _keep_again(session: Session, key: str, entry: Path) -> None:
    """Pieces of the weights that the model holds, which went when the samples of the cell before were stored."""
    layers, notes = read_plan(entry).layers, json.loads((entry / "linears.json").read_text())
    keeper = SolvedBlocks(session.store.partial(key))
    for block in sorted(set(session.block_of.values())):
        if not keeper.has(block):
            keeper.save(block, {fqn: Stored(session.linears[fqn].weight, layers[fqn], {}, notes[fqn])
                                for fqn in layers if session.block_of[fqn] == block})


def true_plan(session: Session, cell: Cell, data: CellData, plan_id: str, made: Plan, progress: Progress) -> tuple[str, Plan, dict]:
    """Digest of the weights, the plan as it was really stored, and a summary of the solver's notes."""
    key = weights_key(session, cell, data, plan_id)[0]
    entry = session.store.get(key)
    if entry is None:
        if session.grid.eval_only:
            raise UserError(f"--eval_only: the weights of this cell ({key}) are not in {session.store.root}; run once without --eval_only")
        put_weights(session, cell, data, plan_id, made, progress)
        entry = session.store.get(key)
        session.store.partial(key).clear()  # the samples were there already, so nothing else would
    notes = json.loads((entry / "linears.json").read_text())
    seconds = json.loads((entry / "meta.json").read_text())["provenance"]["seconds"]
    return key, read_plan(entry), summary(notes) | {"seconds": seconds}


def summary(notes: dict[str, dict]) -> dict:
    """How many linears needed more damping than asked, and the worst, for the result; the rest stays in the store."""
    tried = {fqn: n["tries"] for fqn, n in notes.items() if n.get("tries", 1) > 1}
    return {"more_damping": tried, "linears": len(notes)}
