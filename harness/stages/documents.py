"""What one model is asked on one data set: documents, prompts, batches, calibration; and their digests."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cache

from core.digest import digest, write_json
from core.types import CalibSet
from evaluation.calibration.documents import build_calib
from evaluation.calibration.mixture import build_solver_calib, calib_digest, parse_calib
from evaluation.data.general_text import load_texts
from evaluation.data.sources import load_rows
from evaluation.data.splits import Split, split
from evaluation.engine.batches import batch_plan, shared_prefix
from evaluation.engine.prompts import EvalConfig, Request, build_requests
from evaluation.tasks import get_task
from evaluation.tasks.base import Task
from harness.grid import Grid
from harness.stages.model import Session
from harness.store.store import stage_key

FEWSHOT_OPEN = 5  # a small model without examples answers open questions with an empty line


@cache
def load_split(dataset: str, source: str, data_dir: str | None, token: str | None, calib: int, evaluate: int, seed: int) -> Split:
    """Read, check and split a data set once a process; the note says what was cut or dropped."""
    task = get_task(dataset)
    rows = load_rows(task.source, source, data_dir=data_dir, token=token)
    return split(task.docs(rows), calib, evaluate, seed=seed, stratified=task.stratified)


@dataclass(frozen=True)
class CellData:
    """Everything that a cell reads of its data set."""

    task: Task
    cfg: EvalConfig
    calib: CalibSet
    calib_docs: tuple
    requests: tuple[Request, ...]
    batches: tuple[tuple[int, ...], ...]
    note: str
    calib_digest: str  # the prompts' tokens; all that an unlabeled scorer sees
    labels_digest: str  # the calibration documents with their answers; an oracle sees these too
    eval_digest: str

    def with_budget(self, batch_tokens: int) -> "CellData":
        """The same questions in smaller batches: a new batch plan, hence new samples' identity."""
        return evaluation_plan(replace(self, cfg=replace(self.cfg, batch_tokens=batch_tokens)))


def evaluation_plan(data: CellData) -> CellData:
    """Fix the batches and the digest of what is asked and how it is batched."""
    batches = batch_plan(data.requests, data.cfg)
    asked = [[r.doc.doc_id, r.doc.gold, list(r.doc.aliases), list(r.context), [list(c) for c in r.continuations], list(r.gold)]
             for r in data.requests]
    identity = {"task": data.task.name, "version": data.task.version, "asked": digest(asked), "config": asdict(data.cfg),
                "batches": batches, "prefix": shared_prefix(data.requests, data.cfg)}
    return replace(data, batches=batches, eval_digest=digest(identity))


def eval_config(grid: Grid, task: Task, parameters: int) -> EvalConfig:
    """Resolve the automatic choices for a task and a model of this size."""
    scoring = task.default_scoring(parameters) if grid.scoring == "auto" or grid.scoring not in task.scorings else grid.scoring
    shots = grid.num_fewshot if grid.num_fewshot is not None else FEWSHOT_OPEN if task.kind == "generate" else 0
    # choices write nothing: the flag must not change their identity
    new_tokens = 1 if task.kind == "choice" else task.max_new_tokens or grid.max_new_tokens
    return EvalConfig(scoring, shots, grid.chat_template == "on", grid.max_length, new_tokens, grid.batch_tokens, grid.batch_size)


def cell_data(session: Session, dataset: str) -> CellData:
    """Build the data side of every cell of (model, dataset); cached on the session."""
    cache = session.__dict__.setdefault("_data", {})
    if dataset not in cache:
        grid = session.grid
        parts = load_split(dataset, grid.data_source, grid.data_dir, session.token, grid.calib_size, grid.eval_size, grid.split_seed)
        task = get_task(dataset)
        cfg = eval_config(grid, task, session.structure["parameters"])
        if parse_calib(grid.calib).kind in ("c4", "wikitext2"):  # scorers that read prompts read the general text too
            calib = _solver_calib(session, task, cfg, parts.calib, grid.split_seed)
        else:  # a mix would show them answers, so it is for solvers and gradients only
            calib = build_calib(task, parts.calib, session.tokenizer, grid.max_length, cfg.chat_template, grid.split_seed)
        requests = tuple(build_requests(task, parts.eval, parts.calib, session.tokenizer, cfg))
        prompts = digest([list(calib.doc_ids), [list(map(int, t)) for t in calib.tokens], [list(map(bool, m)) for m in calib.loss_mask]])
        labels = [[d.doc_id, d.question, d.gold, d.gold_index, list(d.aliases), list(d.options)] for d in parts.calib]
        labels_digest = digest([task.name, task.version, labels])
        data = evaluation_plan(CellData(task, cfg, calib, parts.calib, requests, (), parts.note, prompts, labels_digest, ""))
        cache[dataset] = backed_off(session, data)
    return cache[dataset]


def _solver_calib(session: Session, task: Task, cfg: EvalConfig, docs, seed: int) -> CalibSet:
    grid = session.grid
    return build_solver_calib(parse_calib(grid.calib), task, docs, session.tokenizer, scoring=cfg.scoring, max_length=grid.max_length,
                              chat=cfg.chat_template, loss=grid.loss_mask, budget_tokens=grid.calib_tokens, window=grid.calib_window, seed=seed,
                              texts=lambda name: load_general(name, grid.data_source, grid.data_dir, session.token))


@cache
def load_general(name: str, source: str, data_dir: str | None, token: str | None) -> list[str]:
    """Read a general text once a process."""
    return load_texts(name, source, data_dir, token)


def solver_calib(session: Session, data: CellData, seed: int) -> tuple[CalibSet, str]:
    """What Hessians and gradients of a cell are calibrated on, drawn by its seed, and its digest; cached on the session."""
    cache = session.__dict__.setdefault("_solver_calib", {})
    key = (data.task.name, seed)
    if key not in cache:
        found = _solver_calib(session, data.task, data.cfg, data.calib_docs, seed)
        cache[key] = found, calib_digest(replace(found, loss_mask=()))  # Hessians read no mask; gradients add theirs
    return cache[key]


def _marker(session: Session, data: CellData) -> tuple[str, dict]:
    return stage_key("batch_tokens", 1, model=session.ref.key, evaluation=data.eval_digest, machine=session.machine)


def backed_off(session: Session, data: CellData) -> CellData:
    """The batches that an earlier out-of-memory error led to, so that all cells of a column are asked alike."""
    while (entry := session.store.get(_marker(session, data)[0])) is not None:
        data = data.with_budget(json.loads((entry / "batch_tokens.json").read_text()))
    return data


def back_off(session: Session, data: CellData, batch_tokens: int) -> CellData:
    """Note that this model cannot run these batches here, for this run and for later ones."""
    key, identity = _marker(session, data)
    session.store.put(key, identity, {"model": session.label}, lambda folder: write_json(folder / "batch_tokens.json", batch_tokens))
    session.__dict__["_data"][data.task.name] = smaller = data.with_budget(batch_tokens)
    return smaller


def labelled_requests(session: Session, data: CellData, count: int) -> tuple[Request, ...]:
    """The first ``count`` calibration documents as questions with their gold, for an oracle; examples never include themselves."""
    docs, rest = data.calib_docs[:count], data.calib_docs[count:]
    cfg = data.cfg if len(rest) >= data.cfg.num_fewshot else replace(data.cfg, num_fewshot=len(rest))
    return tuple(build_requests(data.task, docs, rest, session.tokenizer, cfg))
