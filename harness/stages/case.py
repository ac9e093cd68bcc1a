"""One cell with all that its stages need: the one argument of every stage and of every forecast.

Cases of one grid share models, task data and the store; what a case works out of them (budget, base level, calibration
sets, keys) is worked out once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from core.calibration import CalibChoice, is_general, names_in, parse_calib
from core.digest import digest, write_json
from core.errors import UserError
from core.forward import is_out_of_memory
from core.placement import Devices
from core.registry import SCORERS, MethodSpec
from core.storage import STORED_SCALES
from core.types import Budget, CalibSet
from evaluation.calibration.mixture import calib_digest
from harness.grid import AUTO_GROUPS, Cell, Grid, cells_of, reads_solver_calib
from harness.progress import Progress
from harness.stages.documents import TaskData, load_general, task_data, tokens_digest
from harness.stages.joint import JointData
from harness.stages.model import LazyModel, check_finite
from harness.store.entry import Content, stage_key
from harness.store.store import Store
from quantization.bits import check_groups, fitting_groups

log = logging.getLogger(__name__)


class Case:
    """A cell, its model, its task data, the grid, the store, and where progress is shown."""

    def __init__(self, cell: Cell, cases: Cases):
        self.cell, self.grid, self.store = cell, cases.grid, cases.store
        self.plain: LazyModel = cases.models[cell.model]  # as loaded
        self._cases, self._known = cases, {}
        self.aligned = None  # with --calib auto: what was chosen, and why

    @cached_property
    def model(self) -> LazyModel:
        """The model that is scored, quantized and asked: as loaded, or with the row's transform folded in."""
        return self._cases.transformed(self)

    @property
    def progress(self) -> Progress:
        return self._cases.progress

    @property
    def method(self) -> MethodSpec:
        return self.cell.method

    @property
    def data(self) -> TaskData:
        """The documents asked; DataError if they cannot be read."""
        return self._cases.data(self.cell.model, self.cell.dataset)

    @property
    def calib_data(self) -> TaskData | JointData:
        """The task data whose documents calibrate: of the data set asked, or of --calib_dataset."""
        named = self.value("calib_dataset")
        return self.data if named is None else self._cases.calib_data(self.cell.model, named)

    @cached_property
    def calib_choice(self) -> CalibChoice:
        """What calibrates; a data set without documents of its own to calibrate on has general text for them."""
        choice, task = parse_calib(self.value("calib")), self.calib_data.task
        if is_general(choice.kind):
            return choice
        if task.general_text is None:
            return choice if choice.kind != "auto" else self._aligned()
        if choice.kind == "mix":
            raise UserError(f"--calib {self.value('calib')} mixes {task.name} with general text, but {task.name} has "
                            f"only general text; use --calib {task.general_text}, or --calib_dataset with a task")
        return parse_calib(task.general_text)

    def _aligned(self) -> CalibChoice:
        """The task's share by the alignment of gradients; half where nothing may be computed yet (--dry_run)."""
        from harness.stages.alignment import alignment  # it reads gradients, a stage above this

        if not reads_solver_calib(self.method):  # prompts without answers are never mixed with text
            return CalibChoice("task", 1.0)
        self.aligned = alignment(self)
        return CalibChoice("mix", 0.5) if self.aligned is None else self.aligned.choice

    def calibrated_on(self, text: str) -> Case:
        """The same row with other calibration data."""
        return self.with_method(replace(self.method, settings={**self.method.settings, "calib": text}))

    def measured_by(self, method: MethodSpec, *more: str) -> Case:
        """The same cell with a method that measures something for this row, on the row's own calibration data;
        ``more``: settings of the row that hold for it too.
        """
        told = {name: self.method.settings[name] for name in ("calib", "calib_dataset", *more)
                if name in self.method.settings}
        return self.with_method(replace(method, settings=told))

    def with_method(self, method: MethodSpec) -> Case:
        """The same cell with another method."""
        return Case(replace(self.cell, method=method), self._cases)

    @property
    def computes(self) -> bool:
        """Whether stages may be computed, or only what is stored be looked at."""
        return self._cases.computes

    @property
    def shows_prompts(self) -> bool:
        """Whether a result states the unlabeled prompts: those of a task always, general text where it is read."""
        return self.reads_prompts or not is_general(self.calib_choice.kind)

    @property
    def reads_prompts(self) -> bool:
        """Whether this row's scorer reads unlabeled prompts."""
        return self.method.scorer is not None and "calib" in SCORERS.get(self.method.scorer).needs

    def value(self, name: str):
        """A setting of this row: as in its brackets, else the grid's."""
        return self.method.settings.get(name, self.grid.value(name))

    def once(self, name, make: Callable):
        """Something that is worked out once a case."""
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]

    @cached_property
    def group_size(self) -> int:
        """The group size of common rows: as asked, or the largest of 128, 96, 64, 32 that divides every width."""
        shapes, asked = self.model.shapes, self.value("groups") or self.grid.group_size
        if asked is not None:
            check_groups(shapes, asked)
            return asked
        fits = fitting_groups([columns for _, columns in shapes.values()], AUTO_GROUPS)
        if not fits:
            check_groups(shapes, AUTO_GROUPS[-1])
        return fits[0]  # the largest stores the least, so if it cannot reach a budget, no smaller one can

    @cached_property
    def budget(self) -> Budget:
        """The budget of a common row; native rows get the levels and group size without a bound."""
        return Budget(avg_bits=self.cell.avg_bits or 0.0, levels=tuple(sorted(set(self.grid.levels))),
                      group_size=self.group_size, kept_bits=self.value("kept"), tolerance=self.grid.tolerance,
                      **({"zero_bits": 0} if self.value("symmetric") else {}) | STORED_SCALES[self.value("scales")])

    @property
    def prompts(self) -> CalibSet:
        """What an unlabeled scorer of this row reads."""
        return self.calib_data.prompts(self.calib_choice, tokens=self.value("calib_tokens"),
                                       window=self.value("calib_window"), asked=self.value("score_prompts") == "asked")

    @cached_property
    def prompts_digest(self) -> str:
        """Ids, tokens and masks of the prompts: all that an unlabeled scorer sees."""
        calib = self.prompts
        return digest([list(calib.doc_ids), [list(map(int, t)) for t in calib.tokens],
                       [list(map(bool, m)) for m in calib.loss_mask]])

    @property
    def solver_calib(self) -> CalibSet:
        """What Hessians and gradients of this row are calibrated on, drawn by its seed."""
        return self.calib_data.solver_calib(self.calib_choice, tokens=self.value("calib_tokens"),
                                            window=self.value("calib_window"), loss=self.value("loss_mask"),
                                            seed=self.cell.seed)

    @property
    def answers(self) -> CalibSet:
        """The same documents with the answers' tokens marked; of general text, which has none, all tokens."""
        loss = "all" if is_general(self.calib_choice.kind) else "answer"
        return self.calib_data.solver_calib(self.calib_choice, tokens=self.value("calib_tokens"),
                                            window=self.value("calib_window"), loss=loss, seed=self.cell.seed)

    @cached_property
    def answers_digest(self) -> str:
        return calib_digest(self.answers)

    @cached_property
    def solver_calib_digest(self) -> str:
        return tokens_digest(self.solver_calib)

    @contextmanager
    def memory(self, what: str, mend: str = "lower --calib_tokens or --calib_window, or use --device cpu or "
                                            "--grad_dtype bf16", devices: Devices = ()) -> Iterator[None]:
        """Out of memory outside the evaluation is the user's to mend: smaller batches of questions would not help."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            where = " and ".join(map(str, devices or (self.model.device,)))
            raise UserError(f"out of memory on {where} while {what}; {mend}") from None


class Cases(Sequence):
    """The cells of a grid in running order, each as a :class:`Case`."""

    def __init__(self, grid: Grid, store: Store, models: dict[str, LazyModel], progress: Progress,
                 token: str | None = None):
        self.grid, self.store, self.models, self.progress, self._token = grid, store, models, progress, token
        self._cases = [Case(cell, self) for cell in cells_of(grid)]
        self._data: dict[tuple[str, str], TaskData] = {}
        self._joint: dict[tuple[str, str], JointData] = {}
        self._transformed: dict[tuple[str, str], LazyModel] = {}  # by name and digest
        self.computes = True

    def __getitem__(self, index: int) -> Case:
        return self._cases[index]

    def __len__(self) -> int:
        return len(self._cases)

    def of_model(self, name: str) -> list[Case]:
        return [case for case in self._cases if case.cell.model == name]

    def data(self, model_name: str, dataset: str) -> TaskData:
        """The task data of a model and data set, read once, with the batches that an out-of-memory error led to."""
        key = model_name, dataset
        if key not in self._data:
            model = self.models[model_name]
            data = task_data(self.grid, dataset, model.tokenizer, parameters=model.parameters,
                             positions=model.positions, token=self._token)
            # so all cells of a data set are asked alike
            while (entry := self.store.get(batches_key(model, data)[0])) is not None:
                data.back_off(json.loads((entry / "batch_tokens.json").read_text()))
            self._data[key] = data
        return self._data[key]

    def calib_data(self, model_name: str, datasets: str) -> TaskData | JointData:
        """The task data of a data set, or of several that calibrate together."""
        names = names_in(datasets)
        if len(names) == 1:
            return self.data(model_name, datasets)
        key = model_name, datasets
        if key not in self._joint:
            self._joint[key] = JointData([self.data(model_name, name) for name in names])
        return self._joint[key]

    def transformed(self, case: Case) -> LazyModel:
        """The case's model with its transform folded in; cases of one transform share it."""
        from harness.stages.transform import transformed  # it reads scores, a stage above this

        name, model = case.cell.model, transformed(case)
        if model is case.plain:
            return model
        model.make_room = lambda: self.release(name, model)
        return self._transformed.setdefault((name, model.ref.transform), model)

    def release(self, name: str, but: LazyModel | None = None) -> None:
        """Free the weights of the model of that name and of all that transforms made of it, one excepted."""
        for model in (self.models[name], *(model for (of, _), model in self._transformed.items() if of == name)):
            if model is not but:
                model.release()

    def forget_texts(self) -> None:
        """A shard of general text is about 1 GB; what was drawn of it stays."""
        load_general.cache_clear()


def open_cases(grid: Grid, token: str | None, progress: Progress) -> Cases:
    """The cells of a grid; a model's name that cannot be used is an error before any work."""
    store = Store(Path(grid.cache_dir), grid.eval_only)
    store.sweep()
    models = {name: LazyModel(name, store.root / "base", grid.device, grid.dtype, threads=grid.threads,
                              grad_device=grid.grad_device, eval_device=grid.eval_device, offload=grid.offload,
                              token=token, say=progress.say)
              for name in grid.models}
    cases = Cases(grid, store, models, progress=progress, token=token)
    for name, model in models.items():
        model.on_load = lambda module, model=model: finite(store, model, module)
        model.make_room = lambda name=name, model=model: cases.release(name, model)
    return cases


def finite_key(model: LazyModel, version: int = 2) -> tuple[str, dict]:
    """Digest of the fact that all of a model's weights are finite; in version 1 those of the linears."""
    return stage_key("finite", version, model=model.ref.key)


def seems_finite(store: Store, model: LazyModel) -> bool:
    """Whether the weights were checked before, so that they need not be loaded for that alone."""
    return any(store.get(finite_key(model, version)[0]) for version in (1, 2))


def finite(store: Store, model: LazyModel, module) -> None:
    """Check a model's weights for NaN and infinity, once."""
    def compute(_partial) -> Content:
        check_finite(model.ref.name, module)
        return Content(lambda folder: write_json(folder / "finite.json", True), {"model": model.label})

    store.make(*finite_key(model), compute)


def batches_key(model: LazyModel, data: TaskData) -> tuple[str, dict]:
    """Digest of the note that a model cannot run these batches on this kind of machine."""
    return stage_key("batch_tokens", 1, model=model.ref.key, evaluation=data.eval_digest, machine=model.eval_machine)


def smaller_batches(case: Case, least: int) -> None:
    """Ask this data set's questions in batches of half the tokens from now on, in later runs too; says so."""
    cfg, model = case.data.cfg, case.model
    if model.eval_device.type == "cuda":
        torch.cuda.empty_cache()
    half = cfg.batch_tokens // 2
    if cfg.batch_size is not None or half < least:
        raise UserError(f"out of memory on {model.eval_device} with batches of {cfg.batch_size or cfg.batch_tokens} "
                        f"{'documents' if cfg.batch_size else 'tokens'}; lower --batch_size or --max_length, or use a "
                        "smaller model")
    log.warning("out of memory with batches of %d tokens; going on with %d (new batch plan, new digest)",
                cfg.batch_tokens, half)
    key, identity = batches_key(case.plain, case.data)
    case.store.put(key, identity, {"model": model.label}, lambda folder: write_json(folder / "batch_tokens.json", half))
    case.data.back_off(half)
