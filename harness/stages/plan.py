"""The plan stage: scores and a budget become bits; a plan on disk and its identity by content."""

import json
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from core.architecture import find_heads, find_mlps
from core.digest import array_digest, digest, write_json
from core.environment import versions
from core.registry import ALLOCATORS, QUANTIZERS
from core.types import Budget, LayerPlan, Plan, Scores
from harness.grid import table_settings
from harness.stages.base_quantized import own_grid
from harness.stages.best_scores import sample_of
from harness.stages.case import Case
from harness.stages.options import VERSIONS, buys_forms, distortion_quantizer, plan_options
from harness.stages.prices import menu, menu_key
from harness.stages.scores import scores_for_plan, scores_key, whole_scores
from harness.store.entry import Content, stage_key
from harness.store.partial import Partial
from quantization.allocators.common import AllocContext
from quantization.allocators.ranking import BelowBest, shuffled
from quantization.apply import distortion_table
from quantization.bits import check_budget, full_precision_plan, make_plan

GAINED = ("zero_bits", "table", "kept_bits")


@dataclass(frozen=True)
class Planned:
    """What a plan stage leaves for those after it."""

    id: str  # the plan by content: two methods that decide alike share weights and samples
    plan: Plan
    entry: str | None = None  # its place in the store
    probe: dict = field(default_factory=dict)  # a fixed sample of scores and masks
    score_notes: dict = field(default_factory=dict)


def plan_key(case: Case) -> tuple[str, dict]:
    """Digest of a plan's inputs; an exempt allocation reads no budget but the group size and scale bits."""
    return case.once("plan_key", lambda: _plan_key(case))


def _plan_key(case: Case) -> tuple[str, dict]:
    spec, budget = case.method, asdict(case.budget)
    allocator, weighed = ALLOCATORS.get(spec.allocator), distortion_quantizer(case)
    if not spec.budgeted:
        budget = {name: budget[name] for name in ("group_size", "scale_bits")}
    else:  # what a budget gained later is in the key where it is not at its default
        budget = {name: value for name, value in budget.items()
                  if name not in GAINED or value != getattr(Budget, name)}
    return stage_key("plan", VERSIONS["plan"], model=case.model.ref.key,
                     scores=scores_key(case)[0] if spec.scorer else None, allocator=ALLOCATORS.identity(allocator.name),
                     options={k: v for k, v in plan_options(case).items() if k in allocator.options}, budget=budget,
                     quantizer=[*QUANTIZERS.identity(weighed), VERSIONS["distortion"]] if weighed else None,
                     **({"shuffle": case.value("shuffle")} if case.value("shuffle") else {}),
                     **({"menu": menu_key(case)} if buys_forms(case.method) else {}))


def plan(case: Case) -> Planned:
    """The row's plan, from the store or from its allocator."""
    if case.method.allocator == "none":
        element_bits = torch.finfo(getattr(torch, case.model.ref.dtype)).bits
        whole = full_precision_plan(case.model.shapes, case.model.other, element_bits)
        return Planned(plan_digest(whole), whole)
    key, identity = plan_key(case)
    entry = case.store.make(key, identity, lambda partial: _compute(case, partial))
    stored = read_plan(entry)
    if (entry / "probe.json").is_file():
        told = json.loads((entry / "probe.json").read_text())
    else:  # an entry of a version that did not write it
        told = _probe(stored, scores_for_plan(case) if case.method.scorer else None)
    return Planned(id=plan_digest(stored), plan=stored, entry=key, **told)


def _compute(case: Case, partial: Partial) -> Content:
    spec = case.method
    scored, draw = scores_for_plan(case) if spec.scorer else None, case.value("shuffle")
    if draw and scored is not None:
        scored = shuffled(scored, case.model.block_of, draw)
    context = alloc_context(case, scored, plan_options(case))
    context.draw = draw
    context.menu = lambda: menu(case, partial)
    element = scored is not None and scored.granularity == "element"
    step = case.progress.stage("kept weights are chosen" if element else "bits are allocated")
    step(0, 1)
    layers, notes = allocated(case, context)
    plan = make_plan(layers, case.model.shapes, case.model.other, notes)
    if spec.budgeted:
        check_budget(plan, case.budget, spec.name)
    told = _probe(plan, scored)
    step(1, 1)

    def write(folder) -> None:
        write_plan(folder, plan)
        write_json(folder / "probe.json", told)

    return Content(write, provenance(case, plan))


def allocated(case: Case, context: AllocContext) -> tuple[dict[str, LayerPlan], dict]:
    """What the row's allocator decides, on all scores where the best that are stored do not reach."""
    allocate = ALLOCATORS.get(case.method.allocator).fn
    try:
        return allocate(context)
    except BelowBest:
        context.scores = whole_scores(case)
        return allocate(context)


def alloc_context(case: Case, scored: Scores | None, options: dict) -> AllocContext:
    """What an allocator may read of a case."""
    model = case.model
    return AllocContext(shapes=model.shapes, block_of=model.block_of, budget=case.budget, scores=scored,
                        distortion=lambda: distortion(case), energy=lambda: energy(case), options=options,
                        attention=lambda: find_heads(model.skeleton), mlps=lambda: find_mlps(model.skeleton))


def _probe(plan: Plan, scored: Scores | None) -> dict:
    """A sample of scores and masks a linear, and the scorer's notes."""
    probe: dict[str, dict] = {}
    for fqn in scored.values if scored else ():
        at, sample = sample_of(scored.values, fqn)
        probe[fqn] = {"scores": [float(f"{score:.6g}") for score in sample.tolist()]}
        keep = plan.layers[fqn].keep if fqn in plan.layers else None
        if keep is not None and scored.granularity == "element":
            probe[fqn] |= {"positions": at.tolist(), "kept": keep.ravel()[at].astype(int).tolist()}
    return {"probe": probe, "score_notes": scored.notes if scored else {}}


def distortion_key(case: Case) -> tuple[str, dict]:
    """Digest of the table of weight errors, shared by all methods and data sets."""
    return stage_key("distortion", VERSIONS["distortion"], model=case.model.ref.key, levels=case.budget.levels,
                     group_size=case.budget.group_size, **own_grid(case.budget),
                     quantizer=QUANTIZERS.identity(distortion_quantizer(case)))


def distortion(case: Case) -> dict[str, list[float]]:
    """Table fqn -> ‖W − Q_b(W)‖² at each level."""
    def compute(_partial: Partial) -> Content:
        table = distortion_table(case.model.originals.weights, case.budget, distortion_quantizer(case),
                                 step=case.progress.stage("weight errors at each level"), device=case.model.device)
        return Content(lambda folder: write_json(folder / "distortion.json", table), {"model": case.model.label})

    return json.loads((case.store.make(*distortion_key(case), compute) / "distortion.json").read_text())


def energy(case: Case) -> dict[str, float]:
    """‖W‖² of every linear."""
    return {fqn: float(weight.float().square().sum(dtype=torch.float64))
            for fqn, weight in case.model.originals.weights.items()}


def provenance(case: Case, plan: Plan) -> dict:
    """What the brief wants in meta.json: names, config and its hash, layers, versions, data digests."""
    settings = table_settings(case.grid)
    return {"model": asdict(case.model.ref) | {"given": case.model.label}, "method": asdict(case.method),
            "dataset": case.cell.dataset,
            "run_type": case.grid.run_type, "config_hash": digest(settings), "config": settings,
            "layers": {fqn: layer.bits for fqn, layer in plan.layers.items()}, "avg_bits": plan.avg_bits,
            "model_avg_bits": plan.model_avg_bits, "seed": case.cell.seed, "versions": versions(),
            "machine": case.model.machines,
            "data": {"calibration": case.prompts_digest if case.shows_prompts else None,
                     "evaluation": case.data.eval_digest}}


def plan_digest(plan: Plan) -> str:
    """Identity of a plan by content.  A field that LayerPlan gained later counts where it is not at its default."""
    return digest({fqn: _layer_identity(layer) for fqn, layer in sorted(plan.layers.items())})


# fields since there were plans
FIRST = ("bits", "group_size", "scale_bits", "zero_bits", "group_bits", "keep", "form", "ordered")
ARRAYS = {"group_bits": np.uint8, "keep": bool}


def _layer_identity(layer: LayerPlan) -> list:
    values = {f.name: getattr(layer, f.name) for f in fields(layer)}
    plain = {name: array_digest(v) if isinstance(v, np.ndarray) else v for name, v in values.items()}
    later = {f.name: plain[f.name] for f in fields(layer) if f.name not in FIRST and values[f.name] != f.default}
    return [plain[name] for name in FIRST] + ([later] if later else [])


def write_plan(folder, plan: Plan) -> None:
    """plan.json, and keep.safetensors (flat positions of kept weights) where there are any."""
    layers = {}
    for fqn, layer in plan.layers.items():
        plain = {f.name: getattr(layer, f.name) for f in fields(layer) if f.name != "keep"}
        plain["group_bits"] = None if layer.group_bits is None else layer.group_bits.tolist()
        layers[fqn] = plain | {"shape": None if layer.keep is None else list(layer.keep.shape)}
    counts = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name != "layers"}
    write_json(folder / "plan.json", counts | {"layers": layers})
    kept = {fqn: np.flatnonzero(layer.keep).astype(np.int64) for fqn, layer in plan.layers.items()
            if layer.keep is not None}
    if kept:
        save_file(kept, folder / "keep.safetensors")


def read_plan(folder) -> Plan:
    """Undo :func:`write_plan`; fields that an earlier version did not know are at their defaults."""
    head = json.loads((folder / "plan.json").read_text())
    kept = load_file(folder / "keep.safetensors") if (folder / "keep.safetensors").exists() else {}
    layers = {}
    for fqn, plain in head.pop("layers").items():
        shape = plain.pop("shape")
        bits = plain.pop("group_bits")
        keep = None
        if fqn in kept:
            keep = np.zeros(shape, dtype=bool)
            keep.flat[kept[fqn]] = True
        layers[fqn] = LayerPlan(**plain, group_bits=None if bits is None else np.array(bits, dtype=np.uint8), keep=keep)
    return Plan(layers=layers, **head)
