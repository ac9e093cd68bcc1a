"""The chain of a cell: calibration → scores → plan → weights → samples.  Each stage is looked up first.

    distortion   model, levels, group size, quantizer                 (shared by all methods and data sets)
    scores       model, scorer and version, its declared parameters, calibration if it reads it; never the budget
    plan         scores, budget, allocator and version, distortion if it reads it
    weights      plan content, quantizer and version                  (recomputed, never stored: round-to-nearest is cheap)
    samples      weights, what is asked, batch plan, dtype, kind of device, threads

Library versions are recorded in meta.json and results, not hashed.
"""

import json
import time
from dataclasses import asdict

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from core.digest import array_digest, atomic_write, canonical_json, digest, write_json
from core.errors import UserError
from core.registry import ALLOCATORS, QUANTIZERS, SCORERS, MethodSpec
from core.types import Budget, LayerPlan, Plan, ScoreContext, Scores
from evaluation.engine import evaluate
from evaluation.metrics import mean_task_metric
from harness.config import Cell
from harness.data import CellData, labelled_requests
from harness.progress import Progress
from harness.session import Session
from harness.store import stage_key
from quantization.allocate import AllocContext
from quantization.apply import distortion_table
from quantization.bits import check_budget, full_precision_plan, make_plan

VERSIONS = {"distortion": 1, "scores": 1, "plan": 1, "weights": 1, "samples": 1}


class Missing(UserError):
    """A stage is not in the store and --eval_only forbids computing it."""


def published_quantizer(spec: MethodSpec, published: bool) -> str | None:
    """The native quantizer with the script's padding quirk, when --published asks for it."""
    return "rtn-float-padded" if published and spec.quantizer == "rtn-float" else spec.quantizer


def distortion(session: Session, budget: Budget, quantizer: str, progress: Progress) -> tuple[str, dict]:
    """Digest and table fqn -> ‖W − Q_b(W)‖² at each level."""
    quant = QUANTIZERS.get(quantizer)
    key, identity = stage_key("distortion", VERSIONS["distortion"], model=asdict(session.ref), levels=budget.levels,
                              group_size=budget.group_size, quantizer=[quant.name, quant.version])
    with session.store.lock(key):
        entry = session.store.get(key)
        if entry is None:
            table = distortion_table(session.originals.weights, budget, quantizer, progress.stage("weight errors at each level"), session.device)
            entry = session.store.put(key, identity, {"model": session.label}, lambda f: write_json(f / "distortion.json", table))
    return key, json.loads((entry / "distortion.json").read_text())


def scores_key(session: Session, cell: Cell, data: CellData) -> tuple[str, dict]:
    """Digest of a cell's scores: only what the scorer reads, never the budget."""
    spec = SCORERS.get(cell.method.scorer)
    read = {p: score_params(session, cell)[p] for p in spec.params}
    upstream = {"model": asdict(session.ref), "scorer": [spec.name, spec.version], "params": read}
    if set(spec.needs) & {"calib", "labels", "gradients"}:
        upstream |= {"calib": data.calib_digest, "machine": session.machine}
    if "labels" in spec.needs:
        upstream |= {"labels": data.labels_digest, "eval_config": asdict(data.cfg)}
    return stage_key("scores", VERSIONS["scores"], **upstream)


def score_params(session: Session, cell: Cell) -> dict:
    """The config fields that scorers may declare."""
    grid = session.grid
    return {"seed": cell.seed, "score_docs": grid.score_docs, "kl_docs": grid.kl_docs, "oracle_docs": grid.oracle_docs,
            "oracle_metric": grid.oracle_metric, "batch_tokens": grid.batch_tokens, "published": grid.published}


def scores(session: Session, cell: Cell, data: CellData, progress: Progress) -> tuple[str, Scores, float]:
    """Digest, scores, and the seconds they took when they were computed."""
    key, identity = scores_key(session, cell, data)
    spec = SCORERS.get(cell.method.scorer)
    with session.store.lock(key):
        entry = session.store.get(key)
        if entry is None:
            refuse_if_eval_only(session, "scores", key)
            start = time.perf_counter()
            found = run_scorer(session, spec, score_params(session, cell), data, progress)
            seconds = time.perf_counter() - start
            values = {fqn: t.float().cpu().contiguous().numpy() for fqn, t in found.values.items()}
            head = {"granularity": found.granularity, "unit": found.unit, "levels": found.levels, "notes": found.notes}

            def write(folder):
                save_file(values, folder / "scores.safetensors")
                write_json(folder / "scores.json", head)

            entry = session.store.put(key, identity, {"model": session.label, "dataset": data.task.name, "seconds": seconds}, write)
    head = json.loads((entry / "scores.json").read_text())
    values = {fqn: torch.from_numpy(a) for fqn, a in load_file(entry / "scores.safetensors").items()}
    levels = tuple(head["levels"]) if head["levels"] else None
    seconds = json.loads((entry / "meta.json").read_text())["provenance"]["seconds"]
    return key, Scores(head["granularity"], values, head["unit"], levels, head["notes"]), seconds


def run_scorer(session: Session, spec, params: dict, data: CellData, progress: Progress) -> Scores:
    """Call a scorer on the weights as loaded and check what it gives back."""
    session.originals.restore()
    asked: dict[int, tuple] = {}

    def task_metric(model, documents):
        if documents not in asked:
            asked[documents] = labelled_requests(session, data, documents)
        return mean_task_metric(evaluate(model, session.tokenizer, data.task, asked[documents], data.cfg))

    ctx = ScoreContext(session.model, session.tokenizer, session.linears, session.blocks, session.block_of,
                       data.calib if "calib" in spec.needs else None, params, spec.params,
                       task_metric if "labels" in spec.needs else None, progress.update)
    found = spec.fn(ctx)
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
    quant, options = published_quantizer(spec, session.grid.published), plan_options(session, spec)
    key, identity = plan_key(session, cell, facts["scores"])
    with session.store.lock(key):
        entry = session.store.get(key)
        if entry is None:
            refuse_if_eval_only(session, "plan", key)
            ctx = AllocContext(session.shapes, session.block_of, budget, found, lambda: distortion(session, budget, quant, progress)[1], options)
            layers, notes = alloc.fn(ctx)
            made = make_plan(layers, session.shapes, session.other, notes)
            if spec.budgeted:
                check_budget(made, budget, spec.name)
            entry = session.store.put(key, identity, provenance(session, cell, data, made), lambda folder: write_plan(folder, made))
    made = read_plan(entry)
    return plan_digest(made), made, found, facts | {"plan_entry": key}


def plan_options(session: Session, spec: MethodSpec) -> dict:
    """The allocator's options; --published adds the rounding of the script's first version where it is read."""
    quirk = session.grid.published and "rounding" in ALLOCATORS.get(spec.allocator).options
    return spec.options | ({"rounding": "round"} if quirk else {})


def plan_key(session: Session, cell: Cell, scored: str | None) -> tuple[str, dict]:
    """Digest of a plan's inputs; an exempt allocation reads no budget but the group size and scale bits."""
    spec, budget = cell.method, asdict(session.budget(cell.avg_bits))
    alloc, quant = ALLOCATORS.get(spec.allocator), published_quantizer(spec, session.grid.published)
    if not spec.budgeted:
        budget = {name: budget[name] for name in ("group_size", "scale_bits")}
    quantizer = [quant, QUANTIZERS.get(quant).version, VERSIONS["distortion"]] if quant else None
    return stage_key("plan", VERSIONS["plan"], model=asdict(session.ref), scores=scored, allocator=[alloc.name, alloc.version],
                     options=plan_options(session, spec), budget=budget, quantizer=quantizer)


def cell_key(session: Session, cell: Cell, data: CellData) -> str:
    """Digest of a whole cell, known before anything is computed: its plan's and its evaluation's inputs."""
    scored = scores_key(session, cell, data)[0] if cell.method.scorer else None
    return samples_key(session, cell, data, f"{cell.method.name}:{plan_key(session, cell, scored)[0]}")[0]


def refuse_if_eval_only(session: Session, stage: str, key: str) -> None:
    if session.grid.eval_only:
        raise Missing(f"--eval_only: the {stage} of this cell ({key}) is not in {session.store.root}; run once without --eval_only")


def provenance(session: Session, cell: Cell, data: CellData, made: Plan) -> dict:
    """What the brief wants in meta.json: model, method, data set, run type, config hash, all configs, layers, versions, data digests."""
    from harness.config import settings
    from harness.environment import versions

    return {"model": asdict(session.ref) | {"given": session.label}, "method": asdict(cell.method), "dataset": data.task.name,
            "run_type": session.grid.run_type, "config_hash": digest(settings(session.grid)), "config": settings(session.grid),
            "layers": {fqn: layer.bits for fqn, layer in made.layers.items()}, "avg_bits": made.avg_bits,
            "model_avg_bits": made.model_avg_bits, "seed": cell.seed, "versions": versions(), "machine": session.machine,
            "data": {"calibration": data.calib_digest, "evaluation": data.eval_digest}}


def plan_digest(made: Plan) -> str:
    """Identity of a plan by content: two methods that decide alike share weights and samples."""
    return digest({fqn: [layer.bits, layer.group_size, layer.scale_bits, layer.zero_bits,
                         None if layer.group_bits is None else array_digest(layer.group_bits),
                         None if layer.keep is None else array_digest(layer.keep)] for fqn, layer in sorted(made.layers.items())})


def write_plan(folder, made: Plan) -> None:
    """plan.json, and keep.safetensors (flat positions of kept weights) where there are any."""
    layers = {fqn: {"bits": p.bits, "group_size": p.group_size, "scale_bits": p.scale_bits, "zero_bits": p.zero_bits,
                    "group_bits": None if p.group_bits is None else p.group_bits.tolist(),
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
        layers[fqn] = LayerPlan(p["bits"], p["group_size"], p["scale_bits"], p["zero_bits"], bits, keep)
    return Plan(layers, head["stored_bits"], head["avg_bits"], head["model_avg_bits"], head["notes"])


def samples_key(session: Session, cell: Cell, data: CellData, plan_id: str) -> tuple[str, dict]:
    """Digest of the samples: the weights by content, what is asked and how it is batched, and the arithmetic."""
    quant = published_quantizer(cell.method, session.grid.published)
    weights = [plan_id, [quant, QUANTIZERS.get(quant).version] if quant else None, VERSIONS["weights"]]
    return stage_key("samples", VERSIONS["samples"], model=asdict(session.ref), weights=weights, evaluation=data.eval_digest,
                     machine=session.machine)


def write_batch(path, samples) -> None:
    """One finished batch, one JSON line a document."""
    atomic_write(path, "".join(canonical_json(asdict(s)) + "\n" for s in samples))
