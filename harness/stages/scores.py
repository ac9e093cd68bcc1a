"""The scores stage: what a scorer says of every linear, never of the budget."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.numpy import save_file

from core.digest import write_json
from core.errors import UserError
from core.registry import ALLOCATORS, SCORERS, ScorerSpec
from core.types import ScoreContext, Scores
from evaluation.engine.ask import evaluate
from evaluation.statistics.summary import mean_task_metric
from harness.stages.base_quantized import base, base_layer, base_quantized, corrupting
from harness.stages.best_scores import FILE, BestScores, write_best
from harness.stages.case import Case
from harness.stages.gradients import gradients, gradients_key
from harness.stages.options import VERSIONS
from harness.stages.outputs import outputs
from harness.stages.pivots import pivots
from harness.stages.untouched import untouched
from harness.store.entry import Content, stage_key
from harness.store.partial import Partial
from harness.store.tensors import load_tensors

WHOLE, ALL_WEIGHTS = "scores.safetensors", "element_scores"  # a file; the stage of every single weight's score
SHAPES = {"group": "[out or 1, in/g]", "line": "[out, 1] or [1, in]"}
FACTS = {"seed": lambda case: case.cell.seed, "batch_tokens": lambda case: case.grid.batch_tokens,
         "group_size": lambda case: case.group_size, "levels": lambda case: case.budget.levels, "base": base,
         "corrupt": corrupting}


def score_params(case: Case, names: tuple[str, ...]) -> dict:
    """The settings and facts that a scorer declares, as they are for this row."""
    return {name: FACTS[name](case) if name in FACTS else case.value(name) for name in names}


def scores_key(case: Case) -> tuple[str, dict]:
    """Digest of a row's scores: only what the scorer reads, never the budget."""
    return case.once("scores_key", lambda: _scores_key(case))


def _scores_key(case: Case) -> tuple[str, dict]:
    spec, model = SCORERS.get(case.method.scorer), case.model
    upstream = {"model": model.ref.key, "scorer": SCORERS.identity(spec.name),
                "params": score_params(case, spec.params)}
    if set(spec.needs) & {"calib", "labels"}:
        upstream |= {"calib": case.prompts_digest, "machine": model.machine}
    if "outputs" in spec.needs:
        upstream |= {"outputs": [VERSIONS["outputs"], case.grid.batch_tokens, case.value("published")]}
    if "hessian" in spec.needs:
        upstream |= {"pivots": VERSIONS["pivots"]}
    if "answers" in spec.needs:
        upstream |= {"answers": case.answers_digest,
                     "machine": model.grad_machine if takes_gradients(spec) else model.machine}
    if set(spec.needs) & {"gradients", "hessian"}:
        upstream |= {"solver_calib": case.solver_calib_digest, "machine": model.machine}
    if spec.gradients:
        upstream |= {"gradients": [gradients_key(case, kind)[0] for kind in spec.gradients]}
    if "labels" in spec.needs:
        data = case.calib_data
        upstream |= {"labels": data.labels_digest, "eval_config": asdict(data.cfg)}
    return stage_key("scores", VERSIONS["scores"], **upstream)


def documents_read(case: Case, spec: ScorerSpec) -> int | None:
    """How many calibration documents a scorer reads at most; None: all of them."""
    return case.value(spec.documents) if spec.documents else None


def takes_gradients(spec: ScorerSpec) -> bool:
    """Whether the scorer itself runs backward passes, and so where gradients are taken."""
    return not spec.gradients and "grad_dtype" in spec.params


def scores(case: Case) -> Scores:
    """The row's scores, from the store or from its scorer; what is used is what is stored.

    Of single weights these are the best ones (harness/stages/best_scores.py); :func:`whole_scores` has all.
    """
    return _read(case, case.store.make(*scores_key(case), lambda partial: _compute(case, partial)))


def whole_scores(case: Case) -> Scores:
    """The row's scores, of single weights every one: an entry of its own, for which the scorer runs (once more, where
    the best are stored already).
    """
    old = (case.store.path(scores_key(case)[0]) / WHOLE).is_file()  # of a version that stored all
    if old or SCORERS.get(case.method.scorer).granularity != "element":
        return scores(case)
    key, identity = whole_scores_key(case)
    return _read(case, case.store.make(key, identity, lambda partial: _compute(case, partial, whole=True)))


def whole_scores_key(case: Case) -> tuple[str, dict]:
    """Digest of every single weight's scores."""
    return stage_key(ALL_WEIGHTS, VERSIONS["scores"], scores=scores_key(case)[0])


def reads_whole_scores(case: Case) -> bool:
    """Whether the row's allocator is handed every single weight's score, and not the best, to rank them."""
    return SCORERS.get(case.method.scorer).granularity == "element" and not ALLOCATORS.get(case.method.allocator).ranks


def scores_needed(case: Case) -> str:
    """Digest of the entry that :func:`scores_for_plan` reads."""
    return (whole_scores_key if reads_whole_scores(case) else scores_key)(case)[0]


def scores_for_plan(case: Case) -> Scores:
    """What the row's allocator is handed."""
    return (whole_scores if reads_whole_scores(case) else scores)(case)


def _read(case: Case, entry: Path) -> Scores:
    head = json.loads((entry / "scores.json").read_text())
    best = (entry / FILE).is_file()
    values = BestScores(entry / FILE, case.model.shapes) if best else load_tensors(entry / WHOLE)
    levels = tuple(head["levels"]) if head["levels"] else None
    return Scores(granularity=head["granularity"], values=values, unit=head["unit"], levels=levels, notes=head["notes"])


def _compute(case: Case, partial: Partial, whole: bool = False) -> Content:
    made = not whole and case.store.has(whole_scores_key(case)[0])
    given = whole_scores(case) if made else run_scorer(case, SCORERS.get(case.method.scorer), partial)
    values = {fqn: value.float().cpu().contiguous().numpy() for fqn, value in given.values.items()}
    head = {"granularity": given.granularity, "unit": given.unit, "levels": given.levels, "notes": given.notes}

    def write(folder) -> None:
        if given.granularity == "element" and not whole:
            write_best(folder, values)
        else:
            save_file(values, folder / WHOLE)
        write_json(folder / "scores.json", head)

    return Content(write, {"model": case.model.label, "dataset": case.cell.dataset})


def check_blocks(case: Case, spec: ScorerSpec) -> None:
    """Refuse a scorer that looks into blocks which are not held."""
    if case.model.offloaded and spec.inside_blocks:
        raise UserError(f"{case.method.name} takes gradients of what lies inside blocks, which --offload "
                        f"{case.model.offload} does not hold; leave out that method or --offload")


def run_scorer(case: Case, spec: ScorerSpec, partial: Partial) -> Scores:
    """Call a scorer on the weights as loaded and check what it gives back, and that it leaves the model as it was."""
    check_blocks(case, spec)
    model, reads, params = case.model, set(spec.needs), score_params(case, spec.params)
    model.originals.restore()

    def task_metric(module, documents: int) -> tuple[float, float]:
        data = case.calib_data
        samples = evaluate(module, model.tokenizer, task=data.task, requests=data.labelled(documents), cfg=data.cfg)
        return mean_task_metric(samples, data.task.score)

    context = ScoreContext(
        model=model.module, tokenizer=model.tokenizer, linears=model.linears, blocks=model.blocks,
        block_of=model.block_of, calib=case.prompts if "calib" in reads else None, params=params, allowed=spec.params,
        task_metric=task_metric if "labels" in reads else None, progress=case.progress.update,
        solver_calib=case.solver_calib if reads & {"gradients", "hessian"} else None,
        answers=case.answers if "answers" in reads else None,
        gradients=(lambda kind: gradients(case, kind)) if "gradients" in reads else None,
        corrupted=(lambda: base_quantized(case)) if "base" in spec.params else None,
        base=(lambda shape: base_layer(params["base"], shape)) if "base" in spec.params else None,
        once=partial.once)
    if "outputs" in reads:
        context.outputs = lambda chosen: outputs(case, context, chosen)
    if "hessian" in reads:
        context.pivots = lambda: pivots(case, context)
    mend = "lower --batch_tokens, --score_docs or --calib_tokens, or use --device cpu or --grad_dtype bf16"
    try:
        apart = takes_gradients(spec)
        with (case.memory(f"{spec.name} scores", mend, model.grad_devices if apart else ()),
              model.on(*model.grad_devices) if apart else nullcontext(),
              untouched(model.module, f"scorer {spec.name!r}", model.release)):
            given = spec.fn(context)
    finally:
        context.outputs = context.pivots = None  # they hold the context, which holds the model
        model.originals.restore(set(model.originals.linears))  # a scorer may have written into weights on its own
    check_scores(given, spec, model.shapes)
    return given


def check_scores(given: Scores, spec: ScorerSpec, shapes: dict[str, tuple[int, int]]) -> None:
    """One finite float tensor of the granularity's shape for every linear, or an error that names the first."""
    if not isinstance(given, Scores):
        raise ValueError(f"scorer {spec.name!r} returned {type(given).__name__}; it must return core.types.Scores")
    if given.granularity != spec.granularity or set(given.values) != set(shapes):
        raise ValueError(f"scorer {spec.name!r} gave {given.granularity} scores of {len(given.values)} linears; "
                         f"it must give {spec.granularity} scores of all {len(shapes)}")
    for fqn, value in given.values.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"scorer {spec.name!r}: scores of {fqn} are a {type(value).__name__}; give a torch.Tensor")
        rows, columns = shapes[fqn]
        wanted = {"layer": (), "linear": (), "channel": (columns,), "element": (rows, columns)}.get(given.granularity)
        shape = tuple(value.shape[:-1] if given.levels else value.shape)
        right = shape == wanted
        if given.granularity == "group":
            right = _group_shape(shape, rows, columns)
        elif given.granularity == "line":
            right = shape in ((rows, 1), (1, columns))
        if given.levels:
            right = right and value.ndim > 0 and value.shape[-1] == len(given.levels)
        if not right or not torch.isfinite(value.float()).all():
            raise ValueError(f"scorer {spec.name!r}: scores of {fqn} have shape {tuple(value.shape)} or are not "
                             f"finite; {given.granularity} scores of a [{rows}, {columns}] linear have shape "
                             f"{SHAPES.get(given.granularity, wanted)}"
                             + (f" and a last axis of {len(given.levels)} levels" if given.levels else ""))


def _group_shape(shape: tuple[int, ...], rows: int, columns: int) -> bool:
    """Whether it is [out or 1, ceil(in / g)] for some group size g."""
    if len(shape) != 2 or shape[0] not in (1, rows) or not 1 <= shape[1] <= columns:
        return False
    size = -(-columns // shape[1])
    return -(-columns // size) == shape[1]

