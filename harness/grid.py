"""Run types and the grid.  Every field of :class:`Grid` is read by somebody (a test holds that)."""

from dataclasses import dataclass, field, fields

from core.errors import UserError
from core.registry import QUANTIZERS, SCORERS, MethodSpec, resolve_method, variants
from evaluation.calibration.mixture import parse_calib

AUTO_GROUPS = (128, 96, 64, 32)

COMMON_QUANTIZERS = ("gptq", "rtn")

MAX_THREADS = 1024  # OpenMP ends the process without a word when it cannot start a thread

MAX_SEED = 2**63 - 1  # what torch's generators take

LEAST = {"calib_size": 1, "eval_size": 1, "score_docs": 1, "kl_docs": 1, "oracle_docs": 1, "calib_tokens": 2, "calib_window": 2, "num_fewshot": 0,
         "max_length": 8, "max_new_tokens": 1, "batch_tokens": 64, "batch_size": 1, "threads": 0}


@dataclass(frozen=True)
class Grid:
    """model × method × dataset × budget × seed, and everything else that can change a result."""

    run_type: str = field(metadata={"runtime": True})
    models: tuple[str, ...]
    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    avg_bits: tuple[float, ...]  # stored bits a weight over the quantized linears, metadata included
    seeds: tuple[int, ...] = (42,)
    # data
    data_source: str = "hub"  # hub | folder | embedded
    data_dir: str | None = field(default=None, metadata={"runtime": True})  # what it holds is in the digests, not where it lies
    calib_size: int = 512
    eval_size: int = 2048
    split_seed: int = 42
    # scoring of linears
    score_docs: int = 256
    kl_docs: int = 64
    oracle_docs: int = 32
    oracle_metric: str = "task"  # task | loglik
    published: bool = False
    # calibration of solvers (Hessians) and gradients
    calib: str = "task"  # task | c4 | wikitext2 | mix:0.5
    calib_tokens: int = 8192  # published: 262144
    calib_window: int = 512  # tokens of a window of general text; published: 2048
    loss_mask: str = "all"  # all | answer: which tokens a gradient's loss counts
    grad_dtype: str = "fp32"  # fp32 | bf16 | fp16
    corrupt: str = "gptq"  # gptq | rtn: the quantized model that TaCQ compares with
    # quantization
    quantizer: str = "gptq"  # of all common rows
    keep_ratio: tuple[float, ...] = (0.0035,)  # kept weights of native rows with a ratio
    levels: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 16)
    group_size: int | None = None  # None = the largest of 128, 96, 64, 32 that fits every width and the budget
    tolerance: float = 0.01
    # evaluation
    scoring: str = "auto"  # auto | letter | cloze, for choice tasks
    num_fewshot: int | None = None  # None = 5 for open questions, 0 for choices
    chat_template: str = "off"  # off | on
    max_length: int = 512
    max_new_tokens: int = 16
    batch_tokens: int = 4096
    batch_size: int | None = None
    # machine: what these come to (dtype, kind of device, threads) is in the digests, not how it was asked for
    dtype: str = field(default="auto", metadata={"runtime": True})
    device: str = field(default="auto", metadata={"runtime": True})
    threads: int = field(default=0, metadata={"runtime": True})  # 0 = all cores
    # how to run; none of these changes a result
    results_dir: str = field(default="results", metadata={"runtime": True})
    cache_dir: str = field(default="saved_models", metadata={"runtime": True})
    eval_only: bool = field(default=False, metadata={"runtime": True})

    def __post_init__(self):
        _check_axes(self)
        for name, least in LEAST.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        if self.threads > MAX_THREADS:
            raise UserError(f"--threads is {self.threads}; give 0 (all cores) to {MAX_THREADS}")
        if self.group_size is not None and self.group_size < 8:
            raise UserError(f"--group_size is {self.group_size}; give 8 or more input columns, or leave it out for the largest that fits")
        for name, seed in (*(("seeds", s) for s in self.seeds), ("split_seed", self.split_seed)):
            if not 0 <= seed <= MAX_SEED:
                raise UserError(f"--{name} {seed} is out of range; give whole numbers from 0 to {MAX_SEED}")
        parse_calib(self.calib)
        choices = {"loss_mask": ("all", "answer"), "grad_dtype": ("fp32", "bf16", "fp16"), "corrupt": ("gptq", "rtn"), "quantizer": COMMON_QUANTIZERS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} is {getattr(self, name)!r}; use one of: {', '.join(allowed)}")
        if self.loss_mask == "answer" and self.calib in ("c4", "wikitext2"):
            raise UserError(f"--loss_mask answer has no meaning with --calib {self.calib}, which has no answers; use --calib task or --loss_mask all")
        if not self.keep_ratio or not all(0 < r < 0.5 for r in self.keep_ratio):
            raise UserError(f"--keep_ratio {self.keep_ratio} is out of range; give shares above 0 and below 0.5, such as 0.0035")
        if not 0 < self.tolerance < 1:
            raise UserError(f"--tolerance is {self.tolerance}; give bits a weight above 0 and below 1, such as 0.01")
        bad = [b for b in self.levels if b not in (2, 3, 4, 5, 6, 8, 16)]
        if bad or len(set(self.levels)) < 2 or min(self.levels) > 8:
            raise UserError(f"--levels {self.levels} are not usable; give at least two of 2 3 4 5 6 8 16, one of them below 16")
        for bits in self.avg_bits:
            if not 1 < bits <= 16:
                raise UserError(f"--avg_bits {bits} is out of range; give stored bits a weight between 2 and 16, such as 4.25")
        if self.data_source == "folder" and not self.data_dir:
            raise UserError("--data_source folder needs --data_dir with the data sets in the hub's layout")
        if self.data_source != "folder" and self.data_dir:
            raise UserError(f"--data_dir {self.data_dir!r} is not read with --data_source {self.data_source}; leave one of the two out")


def _check_axes(grid: Grid) -> None:
    """Each axis names at least one value, and none twice: the same cell would stand in the table twice."""
    for name, flag in (("models", "model"), ("datasets", "dataset"), ("avg_bits", "avg_bits"), ("seeds", "seeds"), ("keep_ratio", "keep_ratio")):
        values = getattr(grid, name)
        if not values:
            raise UserError(f"--{flag} is empty; name at least one")
        twice = [v for i, v in enumerate(values) if v in values[:i]]
        if twice:
            raise UserError(f"--{flag} names {twice[0]!r} twice; name each once")


@dataclass(frozen=True)
class Cell:
    """One row of one column of the table."""

    model: str  # as given: alias, hub id or folder
    method: MethodSpec
    dataset: str
    avg_bits: float | None  # None: the row is exempt from the budget (fp16, native forms)
    seed: int


def cells_of(grid: Grid) -> list[Cell]:
    """All cells in running order: model by model, method by method, so that a model is loaded once."""
    cells = []
    for model in grid.models:
        for name in grid.methods:
            for spec, bits in variants(resolve_method(name), grid.quantizer, grid.avg_bits, grid.keep_ratio):
                seeds = grid.seeds if seeded(spec) else (0,)
                cells += [Cell(model, spec, dataset, bits, seed) for seed in seeds for dataset in grid.datasets]
    return cells


def seeded(spec: MethodSpec) -> bool:
    """Whether a method's result depends on the seed: it draws numbers, or calibrates on documents that the seed draws."""
    return reads_solver_calib(spec) or (spec.scorer is not None and "seed" in SCORERS.get(spec.scorer).params)


def reads_solver_calib(spec: MethodSpec) -> bool:
    """Whether a method's scorer or quantizer reads gradients or the inputs of linears."""
    scored = SCORERS.get(spec.scorer).needs if spec.scorer else ()
    solved = QUANTIZERS.get(spec.quantizer).needs if spec.quantizer else ()
    return bool(solved) or bool({"gradients", "hessian"} & set(scored))


def settings(grid: Grid) -> dict:
    """The fields that must agree for two cells to stand in one table: all but the axes and how it was run."""
    axes = {"models", "methods", "datasets", "avg_bits", "seeds", "keep_ratio"}
    return {f.name: getattr(grid, f.name) for f in fields(grid) if f.name not in axes and not f.metadata.get("runtime")}
