"""The grid: model × method × data set × budget × seed, and everything else that can change a result.

Every field states its flag's help, range and choices here; the command line and ``--help`` are made of them
(harness/cli/flags.py).
Settings of methods are declared by the methods (core/settings.py) and held in ``Grid.settings``.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import methods  # noqa: F401  (registers scorers, allocators, quantizers and methods)
from core.activations import ACTIVATIONS, combinations
from core.calibration import is_general
from core.errors import UserError
from core.method_names import readable, resolve_method, told, variants
from core.registry import ALLOCATORS, COMMON_OPTIONS, FROM_AXES, QUANTIZERS, SCORERS, MethodSpec
from core.settings import SETTINGS
from core.transforms import TRANSFORM, rotates, transform_of
from evaluation.tasks import get_tasks

COMMON_QUANTIZERS = ("gptq", "rtn")
AUTO_GROUPS = (128, 96, 64, 32)
LEVELS = (2, 3, 4, 5, 6, 8, 16)
MAX_THREADS = 1024  # OpenMP ends the process without a word when it cannot start a thread
MAX_SEED = 2**63 - 1  # what torch's generators take
AXES = ("models", "methods", "datasets", "avg_bits", "seeds", *FROM_AXES.values(), *ACTIVATIONS, TRANSFORM.name)
# settings that every result names since there were results; one declared later is named where it is not at its default
ALWAYS = ("calib", "calib_tokens", "calib_window", "corrupt", "grad_dtype", "kl_docs", "loss_mask", "oracle_docs",
          "oracle_metric", "published", "score_docs")
RUN, DATA, BITS, EVALUATION, MACHINE = "what to run", "data", "scores and bits", "evaluation", "machine and folders"


def asked(group: str, help: str, default=..., *, flag: str = "", metavar: str | None = None, low: int | None = None,
          choices: tuple = (), runtime: bool = False):
    """A field of the grid.  runtime: how or where something is run, which changes no result."""
    told = {"group": group, "help": help, "flag": flag, "metavar": metavar, "low": low, "choices": choices,
            "runtime": runtime}
    return field(metadata=told) if default is ... else field(default=default, metadata=told)


@dataclass(frozen=True)
class Grid:
    """What is run, and how; one value a field, several on the axes."""

    run_type: str = asked(RUN, "demo, test or full: the preset that the other flags override (default: demo)",
                          runtime=True)
    models: tuple[str, ...] = asked(RUN, "smollm2-135m, a hub id (owner/name) or a local folder; several allowed",
                                    flag="model", metavar="M")
    methods: tuple[str, ...] = asked(RUN, "methods of the list below, settings of one row in brackets: "
                                          "TaCQ[calib=c4]; several allowed", flag="method", metavar="M")
    datasets: tuple[str, ...] = asked(RUN, "data sets of the list below; several allowed", flag="dataset", metavar="D")
    avg_bits: tuple[float, ...] = asked(RUN, "stored bits a weight, metadata included, that every common row gets, met "
                                             "from below within --tolerance", metavar="B")
    seeds: tuple[int, ...] = asked(RUN, "seeds of random scores, of rotations, and of the documents that solvers and "
                                        "gradients read; several give mean and sd (with --transform hadamard: 42 43 44 "
                                        "if none is given)", (42,), metavar="S")
    data_source: str = asked(DATA, "where rows come from", "hub", choices=("hub", "folder", "embedded"))
    # what it holds is in the digests, not where it lies
    data_dir: str | None = asked(DATA, "folder with the data sets in the hub's layout; implies --data_source folder",
                                 None, metavar="DIR", runtime=True)
    lm_eval_path: str | None = asked(DATA, "folder with YAML tasks of lm-evaluation-harness, for data sets "
                                           "lm_eval:NAME beside its own", None, metavar="DIR", runtime=True)
    calib_size: int = asked(DATA, "documents that calibrate; if the source is short, the ratio to --eval_size is kept "
                                  "and said", 512, metavar="N", low=1)
    eval_size: int = asked(DATA, "documents that evaluate", 2048, metavar="N", low=1)
    part: str = asked(DATA, "documents that are asked: eval, or dev, as many others on which settings may be chosen",
                      "eval", choices=("eval", "dev"))
    split_seed: int = asked(DATA, "seed of the stratified split", 42, metavar="S")
    quantizer: str = asked(BITS, "quantizer of every common row", "gptq",
                           choices=COMMON_QUANTIZERS)
    keep_ratio: tuple[float, ...] = asked(BITS, "kept weights of native rows such as TaCQ-native; several from one "
                                                "scoring", (0.0035,), metavar="R")
    dynamic_heads: tuple[int, ...] = asked(BITS, "heads of each block at 16 bits: in heads-dynamic-native for each "
                                                 "token those with the largest output, in heads-static-native always "
                                                 "the same; several allowed", (2,), metavar="K")
    act_bits: tuple[int, ...] = asked(BITS, "bits of what every linear reads, each token by itself; several allowed",
                                      (16,), metavar="B")
    act_keep: tuple[float, ...] = asked(BITS, "share of each linear's input channels that stays at 16 bits where "
                                              "activations do not; several allowed", (0.0,), metavar="S")
    kv_bits: tuple[int, ...] = asked(BITS, "bits of keys and values; several allowed", (16,), metavar="B")
    transform: tuple[str, ...] = asked(BITS, "what is folded into the model before it is quantized: none, smooth "
                                             "(SmoothQuant's scales), hadamard (QuaRot's rotations); several allowed",
                                       (TRANSFORM.default,), metavar="T")
    levels: tuple[int, ...] = asked(BITS, "bits that a linear may get, of 2 3 4 5 6 8 16", LEVELS, metavar="B")
    group_size: int | None = asked(BITS, "input columns that share a scale (default: largest of 128, 96, 64, 32 that "
                                         "fits)", None, metavar="G")
    tolerance: float = asked(BITS, "how far below --avg_bits a plan may stay", 0.01, metavar="T")
    scoring: str = asked(EVALUATION, "how choices are scored; auto: cloze below 1e9 parameters, else letter", "auto",
                         choices=("auto", "letter", "cloze"))
    num_fewshot: int | None = asked(EVALUATION, "examples before each question (default: the data set's, else 5 for "
                                                "open questions, 0 for choices)", None, metavar="K", low=0)
    chat_template: str = asked(EVALUATION, "wrap prompts in the model's chat template; recorded in every result", "off",
                               choices=("off", "on"))
    max_length: int = asked(EVALUATION, "tokens of a prompt, or the data set's own number where that is higher; longer "
                                        "ones are cut on the left and counted", 512, metavar="T", low=8)
    max_new_tokens: int = asked(EVALUATION, "tokens of a generated answer, where the data set has no number of "
                                            "its own", 16, metavar="T", low=1)
    batch_tokens: int = asked(EVALUATION, "padded tokens a batch; halved on out-of-memory", 4096, metavar="T", low=64)
    batch_size: int | None = asked(EVALUATION, "documents a batch, instead of --batch_tokens", None, metavar="N", low=1)
    # what these come to (dtype, kind of device, threads) is in the digests, not how it was asked for
    device: str = asked(MACHINE, "auto, cpu, cuda or cuda:N", "auto", runtime=True)
    grad_device: str | None = asked(MACHINE, "where gradients are taken (default: --device); several, such as "
                                             "cuda:0,1, share the model's blocks", None, metavar="DEV", runtime=True)
    eval_device: str | None = asked(MACHINE, "where questions are asked (default: --device)", None, metavar="DEV",
                                    runtime=True)
    offload: str = asked(MACHINE, "where the blocks of a model rest that does not fit, each on the device only while "
                                  "it runs: cpu (beside a GPU) or disk (files below --cache_dir)", "off",
                         choices=("off", "cpu", "disk"), runtime=True)
    dtype: str = asked(MACHINE, "arithmetic and weights as loaded; auto: bf16 where the hardware has it", "auto",
                       choices=("auto", "bf16", "fp16", "fp32"), runtime=True)
    threads: int = asked(MACHINE, "CPU threads, 0 for all cores; part of a result's identity", 0, metavar="N", low=0,
                         runtime=True)
    results_dir: str = asked(MACHINE, "where results are written", "results", metavar="DIR", runtime=True)
    cache_dir: str = asked(MACHINE, "where scores, plans and samples are kept by content", "saved_models",
                           metavar="DIR", runtime=True)
    eval_only: bool = asked(RUN, "evaluate stored plans; a cell without one fails instead of being scored", False,
                            runtime=True)
    settings: Mapping[str, object] = field(default_factory=dict)  # of methods, where they are not at their defaults

    def __post_init__(self):
        _check_types(self)
        _check_axes(self)
        _check_fields(self)
        for name, value in self.settings.items():
            SETTINGS[name].checked(value)
        for name in (*ACTIVATIONS, TRANSFORM.name):
            for value in getattr(self, name):
                SETTINGS[name].checked(value)
        if self.value("loss_mask") == "answer" and is_general(self.value("calib")):
            raise UserError(f"--loss_mask answer has no meaning with --calib {self.value('calib')}, which has no "
                            "answers; use --calib task or --loss_mask all")

    @property
    def by_option(self) -> dict[str, tuple]:
        """The axes whose values are those of methods' options, by the option's word."""
        return {word: getattr(self, axis) for word, axis in FROM_AXES.items()}

    def value(self, name: str):
        """A method's setting: as given, else its default."""
        return self.settings.get(name, SETTINGS[name].default)


def _check_axes(grid: Grid) -> None:
    """Each axis names at least one value, and none twice: the same cell would stand in the table twice."""
    for name in AXES:
        if name == "methods":
            continue  # with_controls drops repetitions
        flag, values = _flag(name), getattr(grid, name)
        if not values:
            raise UserError(f"--{flag} is empty; name at least one")
        twice = [v for i, v in enumerate(values) if v in values[:i]]
        if twice:
            raise UserError(f"--{flag} names {twice[0]!r} twice; name each once")


def _flag(name: str) -> str:
    return next(f.metadata["flag"] for f in fields(Grid) if f.name == name) or name


def _check_types(grid: Grid) -> None:
    """From Python anything can be given; flags have their types from the parser."""
    hints = typing.get_type_hints(Grid)
    for f in fields(Grid):
        if not f.metadata:
            continue
        value, kind = getattr(grid, f.name), hints[f.name]
        several = typing.get_origin(kind) is tuple
        kinds = set(typing.get_args(kind)) - {Ellipsis} or {kind}
        kinds |= {int} if float in kinds else set()
        values = value if several and isinstance(value, tuple) else (value,)
        odd = [v for v in values if type(v) not in kinds]
        if odd or (several and not isinstance(value, tuple)):
            wanted = " or ".join(sorted("nothing" if k is type(None) else k.__name__ for k in kinds))
            raise UserError(f"{f.name} is {value!r}; give {'a tuple of ' if several else ''}{wanted}")


def _check_fields(grid: Grid) -> None:
    for f in fields(Grid):
        value, low, choices = getattr(grid, f.name), f.metadata.get("low"), f.metadata.get("choices")
        if low is not None and value is not None and value < low:
            raise UserError(f"--{f.name} is {value}; it must be at least {low}")
        if choices and value not in choices:
            raise UserError(f"--{f.name} is {value!r}; use one of: {', '.join(choices)}")
    if grid.threads > MAX_THREADS:
        raise UserError(f"--threads is {grid.threads}; give 0 (all cores) to {MAX_THREADS}")
    if grid.group_size is not None and grid.group_size < 8:
        raise UserError(f"--group_size is {grid.group_size}; give 8 or more input columns, or leave it out for the "
                        "largest that fits")
    for name, seed in (*(("seeds", s) for s in grid.seeds), ("split_seed", grid.split_seed)):
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"--{name} {seed} is out of range; give whole numbers from 0 to {MAX_SEED}")
    if not all(0 < r < 0.5 for r in grid.keep_ratio):
        raise UserError(f"--keep_ratio {grid.keep_ratio} is out of range; give shares above 0 and below 0.5, such as "
                        "0.0035")
    if min(grid.dynamic_heads) < 1:
        raise UserError(f"--dynamic_heads is {min(grid.dynamic_heads)}; give 1 or more heads of a block, or run "
                        "uniform for none")
    if not 0 < grid.tolerance < 1:
        raise UserError(f"--tolerance is {grid.tolerance}; give bits a weight above 0 and below 1, such as 0.01")
    if set(grid.levels) - set(LEVELS) or len(set(grid.levels)) < 2 or min(grid.levels) > 8:
        raise UserError(f"--levels {grid.levels} are not usable; give at least two of 2 3 4 5 6 8 16, one of them "
                        "below 16")
    for bits in grid.avg_bits:
        if not 1 < bits <= 16:
            raise UserError(f"--avg_bits {bits} is out of range; give stored bits a weight between 2 and 16, such as "
                            "4.25")
    if grid.data_source == "folder" and not grid.data_dir:
        raise UserError("--data_source folder needs --data_dir with the data sets in the hub's layout")
    if grid.data_source != "folder" and grid.data_dir:
        raise UserError(f"--data_dir {grid.data_dir!r} is not read with --data_source {grid.data_source}; leave one of "
                        "the two out")


def grid_of(plain: Mapping) -> Grid:
    """A grid out of JSON data; what an earlier version kept as a field of its own is a setting now."""
    plain, settings = dict(plain), dict(plain.get("settings", {}))
    for name in [n for n in plain if n in SETTINGS and n not in AXES]:
        settings[name] = plain.pop(name)
    known = {f.name for f in fields(Grid)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items() if k in known}
    return Grid(**values | {"settings": settings})


@dataclass(frozen=True)
class Cell:
    """One row of one column of the table."""

    model: str  # as given: alias, hub id or folder
    method: MethodSpec
    dataset: str
    avg_bits: float | None  # None: the row is exempt from the budget (fp16, native forms)
    seed: int

    @property
    def label(self) -> str:
        return f"{self.method.name} on {self.dataset}"


def cells_of(grid: Grid) -> list[Cell]:
    """All cells in running order: model by model and transform by transform, so that each is loaded once."""
    cells = []
    for model in grid.models:
        for name in grid.methods:
            for spec, bits in variants(checked_method(name, grid.quantizer), grid.quantizer, grid.avg_bits,
                                       grid.by_option):
                seeds = grid.seeds if seeded(spec) else (0,)
                cells += [Cell(model, row, dataset, avg_bits=bits, seed=seed) for row in _rows(grid, spec)
                          for seed in (grid.seeds if rotates(row.settings) else seeds) for dataset in grid.datasets]
    return sorted(cells, key=lambda cell: _loads(grid, cell))


def _loads(grid: Grid, cell: Cell) -> tuple:
    """Sorts cells by the weights that they begin with."""
    how = transform_of(cell.method.settings, cell.seed)
    return grid.models.index(cell.model), not how.plain, how.kind, how.alpha, how.seed


def _rows(grid: Grid, spec: MethodSpec) -> list[MethodSpec]:
    """The rows that a method stands for by the bits of activations and by transforms; what its brackets say of either
    holds for it alone.
    """
    rows = [{}] if any(name in spec.settings for name in ACTIVATIONS) else combinations(
        {"act_bits": grid.act_bits, "act_keep": grid.act_keep, "kv_bits": grid.kv_bits})
    kinds = (TRANSFORM.default,) if TRANSFORM.name in spec.settings else grid.transform
    rows = [row | ({} if kind == TRANSFORM.default else {TRANSFORM.name: kind}) for kind in kinds for row in rows]
    if spec.allocator == "none" and {} not in rows:  # all rows are compared with the model as it is
        rows.insert(0, {})
    return [told(spec, **values) for values in rows]


def checked_method(name: str, common: str) -> MethodSpec:
    """The method of that name, if this grid's quantizer reads what its brackets say."""
    spec = resolve_method(name)
    reads, options = readable(spec, common)
    if spec.settings.get("calib_dataset"):
        get_tasks(spec.settings["calib_dataset"])
    told = {pair.partition("=")[0].strip() for pair in spec.name.partition("[")[2].removesuffix("]").split(",")}
    for setting in (*spec.settings, *(name for name in COMMON_OPTIONS if name in spec.options)):
        if setting in told and setting not in (*reads, *options):
            raise UserError(f"{spec.name} reads no setting {setting!r} with --quantizer {common}; "
                            f"it reads: {', '.join((*reads, *options)) or 'no setting'}")
    stored = spec.options | spec.settings
    if stored.get("symmetric") and stored.get("scales") == "table":
        raise UserError(f"{spec.name}: a table has no zero point that symmetric=true could leave out; leave it out, or "
                        "give scales=log")
    if not is_read(spec, common):
        raise UserError(f"{spec.name} tells the solver what --quantizer {common} does not read; use --quantizer gptq, "
                        "or other rows (--method)")
    return spec


def is_read(spec: MethodSpec, common: str) -> bool:
    """Whether the common quantizer reads what a row tells the solver."""
    return {*COMMON_OPTIONS} & spec.options.keys() <= {*readable(spec, common)[1]}


def seeded(spec: MethodSpec) -> bool:
    """Whether a result depends on the seed: the row draws numbers, reads documents that it draws, or rotates."""
    drawn = spec.scorer is not None and "seed" in SCORERS.get(spec.scorer).params
    return drawn or reads_solver_calib(spec) or rotates(spec.settings)


def reads_solver_calib(spec: MethodSpec) -> bool:
    """Whether a method's scorer or quantizer reads answers, gradients or the inputs of linears."""
    scored = SCORERS.get(spec.scorer).needs if spec.scorer else ()
    solved = QUANTIZERS.get(spec.quantizer).needs if spec.quantizer else ()
    bought = ALLOCATORS.get(spec.allocator).needs if spec.allocator else ()
    return bool(solved) or bool(bought) or bool({"answers", "gradients", "hessian"} & set(scored))


def table_settings(grid: Grid) -> dict:
    """What must agree for two cells to stand in one table: all but the axes and how it was run."""
    plain = {f.name: getattr(grid, f.name) for f in fields(grid)
             if f.name not in (*AXES, "settings") and not f.metadata.get("runtime")}
    plain["levels"] = list(grid.levels)  # as JSON gives it back
    if plain["part"] == "eval":  # results of before there were parts say nothing of it
        del plain["part"]
    given = {name: value for name, value in grid.settings.items() if value != SETTINGS[name].default}
    return plain | {name: grid.value(name) for name in ALWAYS} | given


def with_methods(grid: Grid, names: tuple[str, ...]) -> Grid:
    """The same grid of other methods, their names in canonical form, without repetitions."""
    return replace(grid, methods=tuple(dict.fromkeys(checked_method(name, grid.quantizer).name for name in names)))
