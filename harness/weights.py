"""The weights stage of rows whose quantizer reads data, and the gradients that scorers and quantizers share.

ŵ stays in the model and is made again when a later run needs it; what came out of it is stored: the true plan
(outliers, group bits), damping and loss of every linear.  Consecutive cells with the same weights share them.
What is finished of a solve or of a backward pass outlives a kill (harness/pieces.py).
"""

import json
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.digest import write_json
from core.errors import UserError
from core.forward import is_out_of_memory
from core.model import DTYPES
from core.registry import QUANTIZERS, resolve_method
from core.types import Plan, Stored
from harness.config import Cell
from harness.data import CellData, solver_calib
from harness.keys import base_layer, corrupted_key, gradient_kinds, gradients_key, quantizer_options, score_params, weights_key
from harness.partial import Partial
from harness.pieces import GradientSnapshots, SolvedBlocks
from harness.plans import read_plan, write_plan
from harness.progress import Progress
from harness.session import Session
from methods._gradients import KINDS, gradient_sums
from quantization.bits import check_budget, make_plan

SNAPSHOT_S = 60.0  # at least this long between two snapshots of a backward pass


def reads_data(cell: Cell) -> bool:
    """Whether the row's quantizer looks at calibration data."""
    return cell.method.quantizer is not None and bool(QUANTIZERS.get(cell.method.quantizer).needs)


@contextmanager
def solver_memory(session: Session, what: str):
    """Out of memory outside the evaluation is the user's to mend: smaller batches of questions would not help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory on {session.device} while {what}; lower --calib_tokens or --calib_window, or use --device cpu"
                        " or --grad_dtype bf16") from None


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
    params, originals, step = score_params(session, cell), session.originals, progress.stage("the quantized model to compare with")
    layers = {fqn: base_layer(params["base"], shape) for fqn, shape in session.shapes.items()}
    name = params["corrupt"]["quantizer"][0]
    if QUANTIZERS.get(name).needs:
        originals.solve(layers, name, model=session.model, blocks=session.blocks, block_of=session.block_of,
                        calib=solver_calib(session, data, cell.seed)[0], options=params["corrupt"]["options"], step=step, keeper=keeper)
    else:
        originals.restore()
        originals.write(layers, name, step)
    out = {fqn: lin.weight.detach().to("cpu", copy=True) for fqn, lin in session.linears.items()}
    originals.restore()
    return out


def _tensors(path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {fqn: file.get_tensor(fqn) for fqn in file.keys()}


def gradients(session: Session, cell: Cell, data: CellData, kind: str, progress: Progress) -> dict[str, torch.Tensor]:
    """One kind of gradient sum of every linear, from the store or from one backward pass that fills every kind the grid needs."""
    key = gradients_key(session, cell, data, kind)[0]
    with session.store.lock(key, "gradients"):
        if session.store.get(key) is None:
            common = gradients_key(session, cell, data, KINDS[0])[0]  # a pass fills several kinds: one place for its snapshots, one process at it
            with session.store.lock(f"{common}-pass", "backward pass"):
                if session.store.get(key) is None:
                    _backward(session, cell, data, kind, progress, session.store.partial(common))
        return _tensors(session.store.path(key) / "gradients.safetensors")


def _backward(session: Session, cell: Cell, data: CellData, kind: str, progress: Progress, kept: Partial) -> None:
    if session.grid.eval_only:
        raise UserError(f"--eval_only: the gradients of this cell are not in {session.store.root}; run once without --eval_only")
    session.originals.restore()
    missing = {k for k in wanted_kinds(session.grid.methods) if session.store.get(gradients_key(session, cell, data, k)[0]) is None}
    wanted = tuple(sorted({kind} | missing))
    snapshots = GradientSnapshots(kept, SNAPSHOT_S)
    with solver_memory(session, "gradients are computed"):
        found = gradient_sums(session.model, session.linears, solver_calib(session, data, cell.seed)[0], wanted,
                              str(DTYPES[session.grid.grad_dtype]).removeprefix("torch."), progress.update, snapshots)
    seconds = snapshots.seconds
    for name in wanted:
        key, identity = gradients_key(session, cell, data, name)
        facts = {"model": session.label, "seconds": seconds, "losses": [float(x) for x in found.losses], "skipped": found.skipped}
        session.store.put(key, identity, facts, lambda folder, name=name: save_file(found.sums.pop(name), folder / "gradients.safetensors"))
    kept.clear()


def wanted_kinds(names: tuple[str, ...]) -> set[str]:
    """Kinds of gradient sums that the grid's methods will ask for, so that one backward pass gives them all."""
    kinds: set[str] = set()
    for name in names:
        spec = resolve_method(name)
        kinds |= gradient_kinds(spec.scorer, spec.quantizer)
    return kinds
