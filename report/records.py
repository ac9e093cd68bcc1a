"""The result file: its schema as one typed record, how it is written, and how it is read back, older versions included.

``results/<name>.json``    a :class:`Result`: the cell, its metrics with intervals, bits per linear, stage digests, versions
``results/<name>.jsonl``   one line a document (core/sample.py); every metric can be recomputed from it

Tables, notebook, page and app read these files only.  Comparisons with full precision (paired differences, McNemar, flips,
KL) are computed when a table is made, from the per-document lines of both cells.

    schema 1   metrics held ``n``; no ``task``, no ``made``; ``versions`` were those of the process that wrote the file
    schema 2   as :class:`Result` says
"""

import json
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path

from core.digest import atomic_write, canonical_json, digest, write_json
from core.errors import UserError, one_line
from core.sample import Interval, Sample, Stratum, sample_of

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

    def as_plain(self) -> dict:
        """The record as JSON data."""
        plain = asdict(self)
        del plain["file"]
        return {"schema": SCHEMA} | plain


HEAD = tuple(f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING)
BODY = ("samples", "samples_digest", "n", "metrics", "task", "bits", "stages", "scoring", "data_note")


def write_result(folder: Path, stem: str, result: Result, samples: list[Sample] | None) -> None:
    """Write samples first, then the summary that names them, so that a summary never lacks its lines.

    An identical result is left untouched, so a fully cached run changes no file; a failed one never takes the place of a good one.
    """
    plain = result.as_plain()
    if samples is not None:
        lines = "".join(canonical_json(s.as_plain()) + "\n" for s in samples)
        path = folder / f"{stem}.jsonl"
        if not path.exists() or path.read_bytes() != lines.encode():
            atomic_write(path, lines)
        plain |= {"samples": f"{stem}.jsonl", "samples_digest": digest(lines)}
    path = folder / f"{stem}.json"
    if (old := read_if_whole(path)) is not None:
        if old.get("status") == "ok" and not result.ok:
            return
        if _what_came_out(old) == _what_came_out(json.loads(json.dumps(plain))):
            return
    write_json(path, plain)


def _what_came_out(plain: dict) -> dict:
    return {k: v for k, v in plain.items() if k not in VOLATILE}


def read_if_whole(path: Path) -> dict | None:
    """The JSON data at ``path`` as this version writes it; None if there is none, or a damaged one, which the next write replaces."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return upgraded(plain) if isinstance(plain, dict) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def upgraded(plain: dict) -> dict:
    """The same result in this version's schema."""
    if plain.get("schema") != 1:
        return plain
    plain = plain | {"schema": SCHEMA}
    if plain.get("status") == "ok":
        open_question = plain["scoring"] == "generate"
        plain["metrics"] = dict(plain["metrics"])
        plain["n"] = plain["metrics"].pop("n")
        plain["task"] = {"kind": "generate" if open_question else "choice", "chance": None,
                         "metrics": {"accuracy": "EM", "f1": "F1"} if open_question else {"accuracy": "acc"}}
    return plain


def load_results(folder: Path, cells: set[str] | None = None) -> list[Result]:
    """Read the summaries of the cells named, or of all; a file that is not one is an error that names it."""
    folder = Path(folder)
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"results folder {str(folder)!r} {state}; run run_taq_icml.py first or pass --results_dir")
    paths = [p for p in sorted(folder.glob("*.json")) if cells is None or p.stem.rpartition("__")[2] in cells]
    return [read_result(path) for path in paths]


def read_result(path: Path) -> Result:
    """One summary, every field of its type."""
    away = "move it out of the results folder"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} does not read as JSON ({one_line(error)}); delete it and run the cell again, or {away}") from None
    if not isinstance(plain, dict) or "schema" not in plain:
        raise UserError(f"{path} is not a result of this harness; {away}")
    if plain["schema"] not in (1, SCHEMA):
        raise UserError(f"{path} has schema {plain['schema']}, this version reads 1 and {SCHEMA}; run the cell again")
    try:
        plain = upgraded(plain)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} lacks {one_line(error)}, which a result of this harness has; {away}") from None
    lacks = [name for name in (*HEAD, *(BODY if plain.get("status") == "ok" else ())) if name not in plain]
    if lacks:
        raise UserError(f"{path} lacks {lacks[0]!r} ({len(lacks)} fields), which a result of this harness has; {away}")
    try:
        return _typed(Result, plain | {"file": path})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not as this harness writes it ({one_line(error)}); {away}") from None


@cache
def _hints(kind: type) -> dict:
    return typing.get_type_hints(kind)


def _typed(kind, value, where: str = "the file"):
    """``value`` of JSON as the type ``kind``; TypeError with the field's name where it is of another."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        return None if value is None and type(None) in options else _typed(options[0], value, where)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"{where} is {type(value).__name__}, not an object")
        known = {f.name: value[f.name] for f in fields(kind) if f.name in value}
        return kind(**{name: _typed(_hints(kind)[name], of, name) for name, of in known.items()})
    if origin is dict:
        item = typing.get_args(kind)[1]
        if not isinstance(value, dict):
            raise TypeError(f"{where} is {type(value).__name__}, not an object")
        return {name: _typed(item, of, f"{where}[{name!r}]") for name, of in value.items()}
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where} is {type(value).__name__}, not {kind.__name__}")
    return value


def load_samples(result: Result) -> list[Sample]:
    """Read a result's per-document lines and check that they are the ones it was made from."""
    path = result.file.with_name(result.samples)
    if not path.is_file():
        raise UserError(f"{path} is missing; it holds the documents of {result.file.name}, run the cell again")
    text = path.read_text(encoding="utf-8", errors="replace")
    if digest(text) != result.samples_digest:
        raise UserError(f"{path} does not match its summary; delete both and run the cell again")
    return parse_samples(text)


def read_samples(path: Path) -> list[Sample]:
    """Read one JSON line a document."""
    return parse_samples(path.read_text(encoding="utf-8"))


def parse_samples(text: str) -> list[Sample]:
    """The samples of one JSON line a document."""
    return [sample_of(json.loads(line)) for line in text.splitlines()]
