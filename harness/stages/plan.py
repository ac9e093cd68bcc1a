"""Plans on disk and their identity by content."""

import json
from dataclasses import asdict

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from core.digest import array_digest, digest, write_json
from core.environment import versions
from core.registry import ALLOCATORS, QUANTIZERS
from core.types import Budget, LayerPlan, Plan, Scores
from harness.grid import Cell, settings
from harness.progress import Progress
from harness.stages.case import refuse_if_eval_only
from harness.stages.documents import CellData
from harness.stages.model import Session
from harness.stages.options import VERSIONS, distortion_quantizer, plan_options
from harness.stages.scores import scores
from harness.store.store import stage_key
from quantization.allocators.common import AllocContext
from quantization.apply import distortion_table
from quantization.bits import check_budget, full_precision_plan, make_plan


def plan_key(session: Session, cell: Cell, scored: str | None) -> tuple[str, dict]:
    """Digest of a plan's inputs; an exempt allocation reads no budget but the group size and scale bits."""
    spec, budget = cell.method, asdict(session.budget(cell.avg_bits))
    alloc, quant = ALLOCATORS.get(spec.allocator), distortion_quantizer(spec, session.grid.published)
    if not spec.budgeted:
        budget = {name: budget[name] for name in ("group_size", "scale_bits")}
    quantizer = [quant, QUANTIZERS.get(quant).version, VERSIONS["distortion"]] if quant else None
    options = {k: v for k, v in plan_options(session, spec).items() if k in alloc.options}
    return stage_key("plan", VERSIONS["plan"], model=session.ref.key, scores=scored, allocator=[alloc.name, alloc.version],
                     options=options, budget=budget, quantizer=quantizer)


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


def provenance(session: Session, cell: Cell, data: CellData, made: Plan) -> dict:
    """What the brief wants in meta.json: model, method, data set, run type, config hash, all configs, layers, versions, data digests."""
    return {"model": asdict(session.ref) | {"given": session.label}, "method": asdict(cell.method), "dataset": data.task.name,
            "run_type": session.grid.run_type, "config_hash": digest(settings(session.grid)), "config": settings(session.grid),
            "layers": {fqn: layer.bits for fqn, layer in made.layers.items()}, "avg_bits": made.avg_bits,
            "model_avg_bits": made.model_avg_bits, "seed": cell.seed, "versions": versions(), "machine": session.machine,
            "data": {"calibration": data.calib_digest, "evaluation": data.eval_digest}}


def plan_digest(made: Plan) -> str:
    """Identity of a plan by content: two methods that decide alike share weights and samples."""
    return digest({fqn: [layer.bits, layer.group_size, layer.scale_bits, layer.zero_bits,
                         None if layer.group_bits is None else array_digest(layer.group_bits),
                         None if layer.keep is None else array_digest(layer.keep), layer.form, layer.ordered]
                   for fqn, layer in sorted(made.layers.items())})


def write_plan(folder, made: Plan) -> None:
    """plan.json, and keep.safetensors (flat positions of kept weights) where there are any."""
    layers = {fqn: {"bits": p.bits, "group_size": p.group_size, "scale_bits": p.scale_bits, "zero_bits": p.zero_bits,
                    "group_bits": None if p.group_bits is None else p.group_bits.tolist(), "form": p.form, "ordered": p.ordered,
                    "shape": None if p.keep is None else list(p.keep.shape)} for fqn, p in made.layers.items()}
    write_json(folder / "plan.json", {"layers": layers, "stored_bits": made.stored_bits, "avg_bits": made.avg_bits,
                                      "model_avg_bits": made.model_avg_bits, "notes": made.notes})
    kept = {fqn: np.flatnonzero(p.keep).astype(np.int64) for fqn, p in made.layers.items() if p.keep is not None}
    if kept:
        save_file(kept, folder / "keep.safetensors")


def read_plan(folder) -> Plan:
    """Undo :func:`write_plan`."""
    head = json.loads((folder / "plan.json").read_text())
    kept = load_file(folder / "keep.safetensors") if (folder / "keep.safetensors").exists() else {}
    layers = {}
    for fqn, p in head["layers"].items():
        keep = None
        if fqn in kept:
            keep = np.zeros(p["shape"], dtype=bool)
            keep.flat[kept[fqn]] = True
        bits = None if p["group_bits"] is None else np.array(p["group_bits"], dtype=np.uint8)
        forms = {name: p[name] for name in ("form", "ordered") if name in p}  # a plan stored before there were forms has neither
        layers[fqn] = LayerPlan(p["bits"], p["group_size"], p["scale_bits"], p["zero_bits"], bits, keep, **forms)
    return Plan(layers, head["stored_bits"], head["avg_bits"], head["model_avg_bits"], head["notes"])
