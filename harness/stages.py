"""The chain of a cell: calibration → scores → plan → weights → samples.  Each stage is looked up first (harness/keys.py).

Weights are recomputed from the plan, never stored: round-to-nearest is cheap.  Samples are in harness/samples.py.
Library versions are recorded in meta.json and results, not hashed.
"""

import json
import time
from dataclasses import asdict

import torch
from safetensors.numpy import load_file, save_file

from core.digest import digest, write_json
from core.errors import UserError
from core.registry import ALLOCATORS, QUANTIZERS, SCORERS
from core.types import Budget, Plan, ScoreContext, Scores
from evaluation.engine import evaluate
from evaluation.metrics import mean_task_metric
from harness.config import Cell, settings
from harness.data import CellData, labelled_requests, solver_calib
from harness.environment import versions
from harness.keys import VERSIONS, base_layer, distortion_quantizer, plan_key, plan_options, score_params, scores_key
from harness.pieces import KeptValues
from harness.plans import plan_digest, read_plan, write_plan
from harness.progress import Progress
from harness.session import Session
from harness.store import stage_key
from harness.weights import corrupted, gradients
from quantization.allocate import AllocContext
from quantization.apply import distortion_table
from quantization.bits import check_budget, full_precision_plan, make_plan


class Missing(UserError):
    """A stage is not in the store and --eval_only forbids computing it."""


def distortion(session: Session, budget: Budget, quantizer: str, progress: Progress) -> dict[str, list[float]]:
    """Table fqn -> ‖W − Q_b(W)‖² at each level."""
    quant = QUANTIZERS.get(quantizer)
    key, identity = stage_key("distortion", VERSIONS["distortion"], model=session.ref.key, levels=budget.levels,
                              group_size=budget.group_size, quantizer=[quant.name, quant.version])
    with session.store.lock(key, identity["stage"]):
        entry = session.store.get(key)
        if entry is None:
            table = distortion_table(session.originals.weights, budget, quantizer, progress.stage("weight errors at each level"), session.device)
            entry = session.store.put(key, identity, {"model": session.label}, lambda f: write_json(f / "distortion.json", table))
    return json.loads((entry / "distortion.json").read_text())


def scores(session: Session, cell: Cell, data: CellData, progress: Progress) -> tuple[str, Scores, float]:
    """Digest, scores, and the seconds they took when they were computed."""
    key, identity = scores_key(session, cell, data)
    spec = SCORERS.get(cell.method.scorer)
    with session.store.lock(key, identity["stage"]):
        entry = session.store.get(key)
        if entry is None:
            refuse_if_eval_only(session, "scores", key)
            start = time.perf_counter()
            kept = KeptValues(session.store.partial(key))
            found = run_scorer(session, spec, cell, data, progress, kept)
            seconds = time.perf_counter() - start + kept.spent
            values = {fqn: t.float().cpu().contiguous().numpy() for fqn, t in found.values.items()}
            head = {"granularity": found.granularity, "unit": found.unit, "levels": found.levels, "notes": found.notes}

            def write(folder):
                save_file(values, folder / "scores.safetensors")
                write_json(folder / "scores.json", head)

            entry = session.store.put(key, identity, {"model": session.label, "dataset": data.task.name, "seconds": seconds}, write)
            del found, values, write  # read back below: what is used is what is stored
        session.store.partial(key).clear()  # also of a stored entry: its maker may have been killed before this line
    head = json.loads((entry / "scores.json").read_text())
    values = {fqn: torch.from_numpy(a) for fqn, a in load_file(entry / "scores.safetensors").items()}
    levels = tuple(head["levels"]) if head["levels"] else None
    seconds = json.loads((entry / "meta.json").read_text())["provenance"]["seconds"]
    return key, Scores(head["granularity"], values, head["unit"], levels, head["notes"]), seconds


def run_scorer(session: Session, spec, cell: Cell, data: CellData, progress: Progress, kept: KeptValues) -> Scores:
    """Call a scorer on the weights as loaded and check what it gives back."""
    session.originals.restore()
    asked: dict[int, tuple] = {}

    def task_metric(model, documents):
        if documents not in asked:
            asked[documents] = labelled_requests(session, data, documents)
        return mean_task_metric(evaluate(model, session.tokenizer, data.task, asked[documents], data.cfg))

    params, reads = score_params(session, cell), set(spec.needs)
    ctx = ScoreContext(session.model, session.tokenizer, session.linears, session.blocks, session.block_of,
                       data.calib if "calib" in reads else None, params, spec.params,
                       task_metric if "labels" in reads else None, progress.update,
                       solver_calib(session, data, cell.seed)[0] if reads & {"gradients", "hessian"} else None,
                       (lambda kind: gradients(session, cell, data, kind, progress)) if "gradients" in reads else None,
                       (lambda: corrupted(session, cell, data, progress)) if "base" in spec.params else None,
                       (lambda shape: base_layer(params["base"], shape)) if "base" in spec.params else None,
                       kept)
    found = spec.fn(ctx)
    session.originals.restore()
    check_scores(found, spec, session.shapes)
    return found


def check_scores(found: Scores, spec, shapes: dict[str, tuple[int, int]]) -> None:
    """One finite float tensor of the granularity's shape for every linear, or an error that names the first offender."""
    if found.granularity != spec.granularity or set(found.values) != set(shapes):
        raise ValueError(f"scorer {spec.name!r} gave {found.granularity} scores of {len(found.values)} linears; "
                         f"it must give {spec.granularity} scores of all {len(shapes)}")
    for fqn, value in found.values.items():
        rows, cols = shapes[fqn]
        shape = tuple(value.shape[:-1] if found.levels else value.shape)
        wanted = {"layer": [()], "linear": [()], "channel": [(cols,)], "element": [(rows, cols)]}.get(found.granularity)
        if (wanted and shape not in wanted) or not torch.isfinite(value).all():
            raise ValueError(f"scorer {spec.name!r}: scores of {fqn} have shape {shape} or are not finite; {found.granularity} scores "
                             f"of a [{rows}, {cols}] linear have shape {wanted[0] if wanted else '[out or 1, in/g]'}")


def plan(session: Session, cell: Cell, data: CellData, progress: Progress) -> tuple[str, Plan, Scores | None, dict]:
    """Digest by content, plan, the scores it was made from, and upstream facts (digests, seconds)."""
    spec, facts = cell.method, {"scores": None, "score_seconds": 0.0}
    if spec.allocator == "none":
        made = full_precision_plan(session.shapes, session.other, torch.finfo(getattr(torch, session.ref.dtype)).bits)
        return plan_digest(made), made, None, facts
    budget, alloc = session.budget(cell.avg_bits), ALLOCATORS.get(spec.allocator)
    found = None
    if spec.scorer:
        facts["scores"], found, facts["score_seconds"] = scores(session, cell, data, progress)
    quant, options = distortion_quantizer(spec, session.grid.published), plan_options(session, spec)
    key, identity = plan_key(session, cell, facts["scores"])
    with session.store.lock(key, identity["stage"]):
        entry = session.store.get(key)
        if entry is None:
            refuse_if_eval_only(session, "plan", key)
            ctx = AllocContext(session.shapes, session.block_of, budget, found, lambda: distortion(session, budget, quant, progress), options)
            layers, notes = alloc.fn(ctx)
            made = make_plan(layers, session.shapes, session.other, notes)
            if spec.budgeted:
                check_budget(made, budget, spec.name)
            entry = session.store.put(key, identity, provenance(session, cell, data, made), lambda folder: write_plan(folder, made))
    made = read_plan(entry)
    return plan_digest(made), made, found, facts | {"plan_entry": key}


def refuse_if_eval_only(session: Session, stage: str, key: str) -> None:
    if session.grid.eval_only:
        raise Missing(f"--eval_only: the {stage} of this cell ({key}) is not in {session.store.root}; run once without --eval_only")


def provenance(session: Session, cell: Cell, data: CellData, made: Plan) -> dict:
    """What the brief wants in meta.json: model, method, data set, run type, config hash, all configs, layers, versions, data digests."""
    return {"model": asdict(session.ref) | {"given": session.label}, "method": asdict(cell.method), "dataset": data.task.name,
            "run_type": session.grid.run_type, "config_hash": digest(settings(session.grid)), "config": settings(session.grid),
            "layers": {fqn: layer.bits for fqn, layer in made.layers.items()}, "avg_bits": made.avg_bits,
            "model_avg_bits": made.model_avg_bits, "seed": cell.seed, "versions": versions(), "machine": session.machine,
            "data": {"calibration": data.calib_digest, "evaluation": data.eval_digest}}
