"""What is measured of one linear, or answered to one question, beside a grid's cells: records and their files.

``results/linears/<key>.json``    a :class:`Linear` (python -m scripts.linear)
``results/asked/<key>.json``  an :class:`Asked` (python -m scripts.ask)

The key is the digest of what was asked (:func:`key_of`), so whoever shows a record finds it without the model.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from core.digest import digest, write_json
from core.errors import UserError, one_line, storage_error
from report.typed import typed

SCHEMA = 1
LONGEST_QUESTION = 4000  # characters


@dataclass(frozen=True)
class Linear:
    """One linear of a model before and after a TaCQ row's quantization."""

    asked: dict  # what the key is of
    model: str
    revision: str
    dtype: str
    dataset: str
    quantizer: str
    linear: str  # full name
    shape: list  # [out, in]
    bits: int  # base level
    group_size: int
    average: float  # stored bits a weight of the whole row
    documents: int  # that gradients were summed over
    tokens: int
    kept_in_model: int  # weights at 16 bits, over all linears
    weights_in_model: int
    edges: list  # of the histogram's bins, in units of a weight
    loaded: list  # weights by bin, as loaded
    quantized: list  # as the row holds them
    kept: list  # positions of kept weights, row by row: row * in + column
    examples: list  # weights of the linear taken apart, the highest score first: objects of EXAMPLE
    ranks: list  # share of the linear's summed score that the best weights hold: [share of weights, share of score]
    levels: list  # what each base level costs: objects of LEVEL
    versions: dict
    made: str  # UTC, ISO 8601


EXAMPLE = ("row", "column", "weight", "quantized", "gradient", "qal", "msg", "score", "kept")
LEVEL = ("bits", "stored", "error", "qal")  # stored: bits a weight; error: ‖W − Wq‖² / ‖W‖²; qal: Σ G · |W − Wq|


@dataclass(frozen=True)
class Asked:
    """One question, answered by the model as loaded and by a quantized row of it."""

    asked: dict
    model: str
    revision: str
    method: str
    dataset: str
    average: float  # stored bits a weight of the quantized row
    question: str
    prompt: str  # what both models read
    loaded: str  # the answer of the model as loaded
    quantized: str
    tokens: int  # of the prompt
    longest: int  # tokens that an answer may have
    versions: dict
    made: str


FOLDERS = {Linear: "linears", Asked: "asked"}


GRID = ("calib_size", "eval_size", "quantizer", "data_dir")  # fields of a grid that are part of what was asked


def asked_of(given: dict) -> dict:
    """What a record is asked for, without what only says where and how it runs, or what was left open."""
    names = ("model", "dataset", "avg_bits", "linear", "method", "question", *GRID)
    return {name: given[name] for name in names if given.get(name) is not None}


def key_of(kind: type, asked: dict) -> str:
    """The name of a record: the digest of its kind and of what was asked."""
    return digest([FOLDERS[kind], SCHEMA, asked])


def path_of(results_dir: Path | str, kind: type, asked: dict) -> Path:
    """Where the record of what was asked lies, or will lie."""
    return Path(results_dir) / FOLDERS[kind] / f"{key_of(kind, asked)}.json"


def checked_question(question: str) -> str:
    """The question without space around it; UserError for none or one that is too long."""
    question = question.strip()
    if not question:
        raise UserError("the question is empty; write one")
    if len(question) > LONGEST_QUESTION:
        raise UserError(f"the question has {len(question):,} characters; at most {LONGEST_QUESTION:,} are read, so "
                        "ask a shorter one")
    return question


def write_record(results_dir: Path | str, record: Linear | Asked) -> Path:
    """Write a record whole or not at all."""
    path = path_of(results_dir, type(record), record.asked)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema": SCHEMA} | asdict(record))
    except OSError as error:
        raise storage_error(error, path) or error from None
    return path


def read_record(path: Path, kind: type):
    """The record of a file; None if there is none, UserError for a damaged one."""
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
            raise ValueError(f"schema is not {SCHEMA}")
        record = typed(kind, plain)
        if kind is Linear:
            _check(record)
        return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not as this version writes it ({one_line(error)}); delete it and measure again"
                        ) from None


def _check(of: Linear) -> None:
    """The inner parts of a linear, which figures rely on; ValueError, TypeError or KeyError for one that is off."""
    rows, columns = of.shape
    weights = rows * columns
    fits = {"shape": rows > 0 and columns > 0,
            "edges": len(of.edges) == len(of.loaded) + 1 > 1 and of.edges[0] < of.edges[-1],
            "quantized": len(of.quantized) == len(of.loaded) and sum(of.loaded) == sum(of.quantized) == weights,
            "kept": all(type(at) is int and 0 <= at < weights for at in of.kept),
            "examples": bool(of.examples) and all(numbers(one[name] for name in EXAMPLE) for one in of.examples),
            "ranks": bool(of.ranks) and all(0 < share <= 1 and 0 <= held <= 1.000001 for share, held in of.ranks),
            "levels": bool(of.levels) and all(numbers(one[name] for name in LEVEL) for one in of.levels)}
    if wrong := [name for name, right in fits.items() if not right]:
        raise ValueError(f"{wrong[0]} does not hold what it must")


def numbers(values: Iterable) -> bool:
    """Whether all are finite numbers."""
    return all(math.isfinite(value) for value in values)


def records(results_dir: Path | str, kind: type) -> tuple[list, list[str]]:
    """Every record of a kind, the newest first, and a sentence for every file that is none."""
    read, damaged = [], []
    for path in sorted((Path(results_dir) / FOLDERS[kind]).glob("*.json")):
        try:
            read.append(read_record(path, kind))
        except UserError as error:
            damaged.append(str(error))
    return sorted(read, key=lambda record: record.made, reverse=True), damaged
