"""What one model is asked on one data set: documents, prompts, batches, calibration; and their digests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path

from core.calibration import CalibChoice, is_general
from core.digest import digest
from core.errors import UserError
from core.registry import DATASETS
from core.types import CalibSet
from evaluation.calibration.documents import asked_calib, build_calib
from evaluation.calibration.mixture import build_solver_calib, calib_digest
from evaluation.data.general_text import load_texts
from evaluation.data.sources import load_rows
from evaluation.data.splits import Split, development
from evaluation.engine.batches import batch_plan, shared_prefix
from evaluation.engine.prompts import EvalConfig, Request, build_requests
from evaluation.engine.windows import window_requests
from evaluation.tasks import get_task
from evaluation.tasks.base import Task
from evaluation.tasks.lm_eval import look_in
from harness.grid import Grid

FEWSHOT_OPEN = 5  # a small model without examples answers open questions with an empty line


@cache
def load_split(dataset: str, source: str, data_dir: str | None, token: str | None, calib: int, evaluate: int,
               seed: int, lm_eval_path: str | None = None, part: str = "eval") -> Split:
    """Read, check and split a data set once a process; the note says what was cut or dropped."""
    look_in(lm_eval_path)
    parts = open_task(dataset, source, data_dir).split(
        lambda of: load_rows(of, source, data_dir=data_dir, token=token), calib, evaluate, seed=seed)
    return parts if part == "eval" else development(parts, evaluate, dataset)


def open_task(dataset: str, source: str, data_dir: str | None) -> Task:
    """The task of a data set, with what it reads in the data folder besides rows."""
    return get_task(dataset).opened(Path(data_dir) if source == "folder" and data_dir else None)


@cache
def load_general(name: str, source: str, data_dir: str | None, token: str | None) -> list[str]:
    """Read a general text once a process."""
    return load_texts(name, source, data_dir, token)


def eval_config(grid: Grid, task: Task, parameters: int, positions: int = 0) -> EvalConfig:
    """Resolve the automatic choices for a task and a model of this size that takes so many tokens."""
    scoring = grid.scoring if grid.scoring in task.scorings else task.default_scoring(parameters)
    open_question = task.kind == "generate"
    own = task.num_fewshot if task.num_fewshot is not None else FEWSHOT_OPEN if open_question else 0
    shots = own if grid.num_fewshot is None or task.fixed_fewshot else grid.num_fewshot
    longest = max(grid.max_length, task.max_length or 0)
    if task.whole_prompts:
        longest = grid.value("lm_eval_max_length") or positions or longest
    # nothing else writes: the flag must not change its identity
    new_tokens = task.max_new_tokens or grid.max_new_tokens if open_question else 1
    return EvalConfig(scoring=scoring, num_fewshot=shots, chat_template=grid.chat_template == "on",
                      max_length=longest, max_new_tokens=new_tokens,
                      batch_tokens=grid.batch_tokens, batch_size=grid.batch_size)


class TaskData:
    """Everything that cells of one model read of one data set.

    The batches may become smaller on the way (:meth:`back_off`); all else stays.
    """

    def __init__(self, task: Task, cfg: EvalConfig, documents: Split, tokenizer, grid: Grid, token: str | None):
        self.task, self.cfg, self.note = task, cfg, documents.note
        self.calib_docs: tuple = documents.calib
        self._examples: tuple | None = documents.examples
        if task.kind == "likelihood" and task.windows:
            requests = window_requests(task, documents.eval, tokenizer, grid.value("ppl_window"), grid.eval_size)
        else:
            examples = documents.calib if documents.examples is None else documents.examples
            requests = build_requests(task, documents.eval, examples, tokenizer, cfg=cfg)
        self.requests: tuple[Request, ...] = tuple(requests)
        self._tokenizer, self._grid, self._token = tokenizer, grid, token
        self._drawn: dict[tuple, CalibSet] = {}
        self._labelled: dict[int, tuple[Request, ...]] = {}

    @cached_property
    def batches(self) -> tuple[tuple[int, ...], ...]:
        return batch_plan(self.requests, self.cfg)

    @cached_property
    def asked_digest(self) -> str:
        """The questions, however they are batched."""
        return digest([[r.doc.doc_id, r.doc.gold, list(r.doc.aliases), list(r.context),
                        [list(c) for c in r.continuations], list(r.gold), *map(list, r.others)]
                       for r in self.requests])

    @cached_property
    def eval_digest(self) -> str:
        """What is asked and how it is batched."""
        content = DATASETS.contents.get(self.task.name)  # a plugin's task is its file too
        files = self.task.content([r.doc for r in self.requests])
        return digest({"task": self.task.name, "version": self.task.version, "asked": self.asked_digest,
                       "config": asdict(self.cfg),
                       "batches": self.batches, "prefix": shared_prefix(self.requests, self.cfg)}
                      | ({"content": content} if content else {}) | ({"files": files} if files else {}))

    def back_off(self, batch_tokens: int) -> None:
        """Ask the same questions in smaller batches: a new batch plan, hence new samples' identity."""
        self.cfg = replace(self.cfg, batch_tokens=batch_tokens)
        for name in ("batches", "eval_digest"):
            self.__dict__.pop(name, None)

    @cached_property
    def labels_digest(self) -> str:
        """The calibration documents with their answers, which an oracle sees."""
        labels = [[d.doc_id, d.question, d.gold, d.gold_index, list(d.aliases), list(d.options)]
                  for d in self.calib_docs]
        files = self.task.content(self.calib_docs)
        return digest([self.task.name, self.task.version, labels, *([files] if files else [])])

    def prompts(self, choice: CalibChoice, tokens: int, window: int, asked: bool = False) -> CalibSet:
        """What unlabeled scorers read: the calibration documents' prompts, as published or ``asked`` as the evaluation
        does, or general text.

        A mix would show them answers, so it is for solvers and gradients only.
        """
        if is_general(choice.kind):
            return self.solver_calib(choice, tokens=tokens, window=window, loss="all", seed=self._grid.split_seed)
        if asked:
            return self._once(("prompts", "asked"), lambda: asked_calib(
                self.task, self.calib_docs, self._tokenizer, cfg=self.cfg, examples=self._examples,
                seed=self._grid.split_seed))
        return self._once(("prompts",), lambda: build_calib(
            self.task, self.calib_docs, self._tokenizer, max_length=self._grid.max_length,
            chat_template=self.cfg.chat_template, seed=self._grid.split_seed))

    def solver_calib(self, choice: CalibChoice, *, tokens: int, window: int, loss: str, seed: int) -> CalibSet:
        """What Hessians and gradients are calibrated on, drawn by a seed."""
        grid = self._grid
        return self._once((choice, tokens, window, loss, seed), lambda: build_solver_calib(
            choice, self.task, self.calib_docs, self._tokenizer, scoring=self.cfg.scoring, max_length=grid.max_length,
            chat=self.cfg.chat_template, loss=loss, budget_tokens=tokens, window=window, seed=seed,
            texts=lambda name: load_general(name, grid.data_source, grid.data_dir, self._token)))

    def _once(self, key: tuple, draw: Callable[[], CalibSet]) -> CalibSet:
        if key not in self._drawn:
            self._drawn[key] = draw()
        return self._drawn[key]

    def labelled(self, count: int) -> tuple[Request, ...]:
        """The first ``count`` calibration documents as questions for an oracle; none is an example of itself."""
        if not self.calib_docs:
            raise UserError(f"{self.task.name} has no labelled documents to calibrate on, only text; use "
                            "--calib_dataset with a task that has")
        if count not in self._labelled:
            docs = self.calib_docs[:count]
            rest = self.calib_docs[count:] if self._examples is None else self._examples
            cfg = self.cfg if len(rest) >= self.cfg.num_fewshot else replace(self.cfg, num_fewshot=len(rest))
            self._labelled[count] = tuple(build_requests(self.task, docs, rest, self._tokenizer, cfg=cfg))
        return self._labelled[count]


def tokens_digest(calib: CalibSet) -> str:
    """What a Hessian sees of a calibration set: ids and tokens, no mask; gradients add theirs."""
    return calib_digest(replace(calib, loss_mask=()))


def task_data(grid: Grid, dataset: str, tokenizer, *, parameters: int, positions: int = 0,
              token: str | None = None) -> TaskData:
    """Read a data set and put it to a model of this size."""
    look_in(grid.lm_eval_path)
    task = open_task(dataset, grid.data_source, grid.data_dir)
    documents = load_split(dataset, grid.data_source, grid.data_dir, token, calib=grid.calib_size,
                           evaluate=grid.eval_size, seed=grid.split_seed, lm_eval_path=grid.lm_eval_path,
                           part=grid.part)
    cfg = eval_config(grid, task, parameters, positions)
    return TaskData(task, cfg, documents, tokenizer, grid=grid, token=token)
