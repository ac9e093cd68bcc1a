"""The schema of a result, documented here and nowhere else: one cell of a grid as a typed record; older versions.

    schema 1   metrics held ``n``; no ``task``, no ``made``; ``versions`` were those of the process that wrote the file
    schema 2   as :class:`Result` says

The file is the record as JSON (report/records.py), with ``schema`` beside its fields.
"""

from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

from core.activations import Activations, activations_of
from core.digest import digest
from core.sample import Interval, Stratum
from core.types import Budget

SCHEMA = 2
# what may differ between two writings of one result: it says how it came about, not what came out
VOLATILE = ("process_peak_bytes", "device_peak_bytes", "versions", "seconds", "run_type", "made", "schema")


@dataclass(frozen=True)
class ModelFacts:
    """Which weights."""

    name: str
    revision: str  # commit of the hub, or sha256 over the folder's files
    dtype: str
    given: str = ""  # as it was asked for: alias, hub id or folder


@dataclass(frozen=True)
class MethodFacts:
    """Which row."""

    name: str  # with its settings in brackets, if it has any
    scorer: str | None = None
    allocator: str | None = None
    quantizer: str | None = None
    paper: str = ""
    native: bool = False  # bits of its own, no budget
    options: dict = field(default_factory=dict)  # of allocator and quantizer
    settings: dict = field(default_factory=dict)  # given in brackets, for this row alone


@dataclass(frozen=True)
class Bits:
    """What is stored."""

    average: float  # stored bits a weight over the quantized linears, metadata included
    whole_model: float  # the same with embeddings, head and norms at their own dtype
    stored: int | None = None  # over the quantized linears
    group_size: int | None = None  # of the common grid
    per_linear: dict[str, int] = field(default_factory=dict)  # base level by linear
    notes: dict = field(default_factory=dict)


@dataclass(frozen=True)
class TaskFacts:
    """How the data set is asked and what is measured of it."""

    kind: str  # "generate" | "choice"
    metrics: dict[str, str]  # names of what a table shows, in its order, and their short labels ("accuracy": "EM")
    chance: float | None = None  # accuracy of a guess, 0..1; None for open questions
    groups: dict[str, str] = field(default_factory=dict)  # category -> group, of data sets whose categories have groups

    def __post_init__(self):
        # files hold names in alphabetical order, in which acc_norm would come before the accuracy, the main metric
        if "accuracy" in self.metrics:
            first = {"accuracy": self.metrics["accuracy"]}
            object.__setattr__(self, "metrics", first | self.metrics)


def equal_bits(a: float, b: float, tolerance: float) -> bool:
    """Whether two rows may be compared without a word about their bits; 1e-9 allows for rounding in the last digit."""
    return abs(a - b) <= tolerance + 1e-9


@dataclass(frozen=True)
class Result:
    """One cell.  All from ``samples`` on belongs to cells with status "ok"."""

    cell: str  # digest
    model: ModelFacts
    method: MethodFacts
    dataset: str
    avg_bits: float | None  # the budget; None = the row has bits of its own
    seed: int
    run_type: str
    settings: dict  # of the grid: all fields but the axes, equal for all cells of a table
    machine: str
    versions: dict  # of what made the samples: libraries, Python, this project's commit
    status: str  # "ok" | "error"
    error: str | None
    traceback: str | None = None
    samples: str = ""  # file name of the documents' lines
    samples_digest: str = ""
    made: str = ""  # when the samples were made, UTC, ISO 8601; empty in schema 1
    n: int = 0  # documents
    metrics: dict[str, Interval | None] = field(default_factory=dict)  # "accuracy", "gold_loglik", ...
    task: TaskFacts | None = None
    bits: Bits | None = None
    stages: dict = field(default_factory=dict)  # digests: scores, plan, weights, samples, evaluation
    scoring: str = ""
    data_note: str = ""  # what was cut or dropped of the data
    evaluation: dict = field(default_factory=dict)  # how documents were put to the model
    task_version: int | None = None
    calibration: dict = field(default_factory=dict)  # the unlabeled prompts
    solver_calibration: dict | None = None  # what solvers and gradients read
    probe: dict = field(default_factory=dict)  # a fixed sample of scores and masks, by linear
    score_notes: dict = field(default_factory=dict)
    strata: dict[str, Stratum] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: what making it took, other stages not counted
    process_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    file: Path | None = None  # where it was read from; not written

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def name(self) -> str:
        """The method's name: the row that the cell belongs to."""
        return self.method.name

    @property
    def asked(self) -> str:
        """Digest of the documents and of how and in which batches they were put; only cells of one are compared."""
        return self.stages["evaluation"]

    @property
    def tolerance(self) -> float:
        """Stored bits a weight by which two rows may differ and still stand at equal bits."""
        return self.settings.get("tolerance", Budget.tolerance)

    @cached_property
    def conditions(self) -> str:
        """Digest of what all cells of a table share: weights, dtype, machine, settings, bits of activations."""
        plain = self.conditions_but_activations
        return plain if self.activations.plain else digest([plain, asdict(self.activations)])

    @cached_property
    def conditions_but_activations(self) -> str:
        """The same whatever the bits of activations are."""
        return digest([self.model.revision, self.model.dtype, self.machine, self.settings])

    @cached_property
    def activations(self) -> Activations:
        """How activations are held."""
        return activations_of(self.method.settings)

    @property
    def age(self) -> tuple[str, str, str]:
        """Sorts results from oldest to newest; those of equal or unknown time in an order that never changes."""
        return self.made, self.samples_digest, self.cell

    def as_plain(self) -> dict:
        """The record as JSON data."""
        plain = asdict(self)
        del plain["file"]
        return {"schema": SCHEMA} | plain


HEAD = sorted(f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING)
BODY = ("metrics", "n", "samples", "samples_digest", "task", "bits", "stages", "scoring", "data_note")


def upgraded(plain: dict) -> dict:
    """The same result in this version's schema; what it lacks against its own schema stays lacking."""
    if plain.get("schema") != 1:
        return plain
    plain = plain | {"schema": SCHEMA}
    metrics = plain.get("metrics")
    if isinstance(metrics, dict):
        open_question = plain.get("scoring") == "generate"
        shown = {"accuracy": "EM", "f1": "F1"} if open_question else {"accuracy": "acc"}
        task = {"kind": "generate" if open_question else "choice", "metrics": shown}
        plain |= {"task": task} | {name: metrics[name] for name in metrics if name == "n"}
        plain["metrics"] = {name: interval for name, interval in metrics.items() if name != "n"}
    return plain
