"""The scores stage: what a scorer says of every linear, never of the budget."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from safetensors.numpy import load_file, save_file

from core.digest import write_json
from core.registry import SCORERS
from core.types import ScoreContext, Scores
from evaluation.engine.ask import evaluate
from evaluation.statistics.summary import mean_task_metric
from harness.grid import Cell
from harness.progress import Progress
from harness.stages.base_quantized import base, base_layer, corrupted, corrupting
from harness.stages.case import refuse_if_eval_only
from harness.stages.documents import CellData, labelled_requests, solver_calib
from harness.stages.gradients import gradients, gradients_key
from harness.stages.model import Session
from harness.stages.options import VERSIONS
from harness.store.partial import Partial
from harness.store.store import stage_key


class KeptValues:
    """``ScoreContext.kept``: plain data by name; what is used is what is kept, so the first run and a resumed one see the same."""

    def __init__(self, kept: Partial):
        self.kept, self.spent = kept, 0.0

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        found, start = self.kept.load(name), time.perf_counter()
        if found is None:
            value = make()
            found = json.dumps({"value": value, "seconds": time.perf_counter() - start}).encode()  # NaN is for the scorer's own checks to refuse
            self.kept.save(name, found)
        else:
            self.spent += json.loads(found)["seconds"]
        return json.loads(found)["value"]


def score_params(session: Session, cell: Cell) -> dict:
    """The config fields that scorers may declare."""
    grid = session.grid
    compares = set(SCORERS.get(cell.method.scorer).params) & {"base", "corrupt"}
    return {"seed": cell.seed, "score_docs": grid.score_docs, "kl_docs": grid.kl_docs, "oracle_docs": grid.oracle_docs,
            "oracle_metric": grid.oracle_metric, "batch_tokens": grid.batch_tokens, "published": grid.published,
            "grad_dtype": grid.grad_dtype, "base": base(session, cell) if compares else None,
            "corrupt": corrupting(session, cell) if compares else None,
            "group_size": session.group_size if "group_size" in SCORERS.get(cell.method.scorer).params else None}


def scores_key(session: Session, cell: Cell, data: CellData) -> tuple[str, dict]:
    """Digest of a cell's scores: only what the scorer reads, never the budget."""
    spec = SCORERS.get(cell.method.scorer)
    params = score_params(session, cell)
    read = {p: params[p] for p in spec.params}
    upstream = {"model": session.ref.key, "scorer": [spec.name, spec.version], "params": read}
    if set(spec.needs) & {"calib", "labels"}:
        upstream |= {"calib": data.calib_digest, "machine": session.machine}
    if set(spec.needs) & {"gradients", "hessian"}:
        upstream |= {"solver_calib": solver_calib(session, data, cell.seed)[1], "machine": session.machine}
    if spec.gradients:
        upstream |= {"gradients": [gradients_key(session, cell, data, kind)[0] for kind in spec.gradients]}
    if "labels" in spec.needs:
        upstream |= {"labels": data.labels_digest, "eval_config": asdict(data.cfg)}
    return stage_key("scores", VERSIONS["scores"], **upstream)


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
