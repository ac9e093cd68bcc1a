"""Result files: how they are written and read back.

``results/<name>.json``              one :class:`report.schema.Result`: the cell, its metrics with intervals, its bits
``results/<name>.jsonl``             one line a document (core/sample.py); every metric can be recomputed from it
``results/questions/<asked>.jsonl``  one line a :class:`Question`, for all cells of one ``Result.asked``

Tables, notebook, page and app read these files only.  Comparisons with full precision (paired differences, McNemar,
flips, KL) are computed when a table is made, from the per-document lines of both cells.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from core.digest import atomic_write, canonical_json, digest, write_json
from core.errors import UserError, one_line
from core.sample import Sample, sample_of
from report.schema import BODY, HEAD, SCHEMA, VOLATILE, Bits, MethodFacts, ModelFacts, Result, TaskFacts, upgraded
from report.typed import typed

__all__ = ["SCHEMA", "Bits", "MethodFacts", "ModelFacts", "Question", "Result", "TaskFacts", "load_questions",
           "load_results", "load_samples", "parse_samples", "read_if_whole", "read_result", "read_samples",
           "write_questions", "write_result"]


def write_result(folder: Path, stem: str, result: Result, samples: list[Sample] | None) -> None:
    """Write samples first, then the summary that names them, so that a summary never lacks its lines.

    An identical result is left untouched, so a fully cached run changes no file; a failed one never takes the place of
    a good one.
    """
    plain = result.as_plain()
    if samples is not None:
        lines = _lines(s.as_plain() for s in samples)
        _write_if_new(folder / f"{stem}.jsonl", lines)
        plain |= {"samples": f"{stem}.jsonl", "samples_digest": digest(lines)}
    path = folder / f"{stem}.json"
    if (old := read_if_whole(path)) is not None:
        if old.get("status") == "ok" and not result.ok:
            return
        if _outcome(old) == _outcome(plain):
            return
    write_json(path, plain)


def _lines(rows: Iterable[dict]) -> str:
    return "".join(canonical_json(row) + "\n" for row in rows)


def _write_if_new(path: Path, text: str) -> None:
    if not path.exists() or path.read_bytes() != text.encode():
        atomic_write(path, text)


def _outcome(plain: dict) -> str:
    """Digest of what came out, whoever wrote it down and when."""
    return digest({name: value for name, value in plain.items() if name not in VOLATILE})


def read_if_whole(path: Path) -> dict | None:
    """The JSON data at ``path`` as this version writes it.

    None if there is none, or a damaged one, which the next write replaces.
    """
    try:
        plain = _json_of(path)
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return upgraded(plain) if isinstance(plain, dict) else None


def _json_of(path: Path):
    def refuse(name: str):
        raise ValueError(f"{name} is no number in JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def load_results(folder: Path, cells: set[str] | None = None) -> list[Result]:
    """Read the summaries of the cells named, or of all; a file that is not one is an error that names it."""
    folder = Path(folder)
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"results folder {str(folder)!r} {state}; run run_taq_icml.py first or pass --results_dir")
    paths = [p for p in sorted(folder.glob("*.json")) if cells is None or p.stem.rpartition("__")[2] in cells]
    return [read_result(path) for path in paths]


def read_result(path: Path) -> Result:
    """One summary, every field of its type; UserError for any other file."""
    away = "move it out of the results folder"
    try:
        plain = _json_of(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} does not read as JSON ({one_line(error)}); delete it and run the cell again, "
                        f"or {away}") from None
    if not isinstance(plain, dict) or "schema" not in plain:
        raise UserError(f"{path} is not a result of this harness; {away}")
    if plain["schema"] not in (1, SCHEMA):
        raise UserError(f"{path} has schema {one_line(plain['schema'])}, this version reads 1 and {SCHEMA}; "
                        "run the cell again")
    plain = upgraded(plain)
    lacks = [name for name in (*HEAD, *(BODY if plain.get("status") == "ok" else ())) if name not in plain]
    if lacks:
        raise UserError(f"{path} lacks {lacks[0]!r} ({len(lacks)} fields), which a result of this harness has; {away}")
    try:
        result = typed(Result, plain | {"file": path})
        if result.ok and ("evaluation" not in result.stages or Path(result.samples).name != result.samples):
            raise ValueError(f"stages lack 'evaluation', or samples {result.samples!r} is no file name")
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not as this harness writes it ({one_line(error)}); {away}") from None
    return result


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
    return [sample_of(plain) for plain in _objects(text)]


def _objects(text: str) -> list[dict]:
    """The objects of a text with one a line, read in one go."""
    return json.loads(f"[{','.join(text.splitlines())}]")


class Question(NamedTuple):
    """What was asked of one document, for people to read."""

    doc_id: str
    question: str
    options: tuple[str, ...] = ()  # in the order of the letters A, B, ...; none for open questions


def write_questions(folder: Path, asked: str, rows: Iterable[Question]) -> None:
    """Write the questions of all cells whose ``Result.asked`` this is, unless they are there."""
    text = _lines({"doc_id": row.doc_id, "question": row.question, "options": list(row.options)} for row in rows)
    _write_if_new(_questions_file(folder, asked), text)


def load_questions(result: Result) -> dict[str, Question]:
    """The questions that a cell was asked, by the document's id; empty for results of versions that kept none."""
    path = _questions_file(result.file.parent, result.asked)
    if not path.is_file():
        return {}
    try:
        rows = _objects(path.read_text(encoding="utf-8"))
        return {row["doc_id"]: Question(row["doc_id"], row["question"], tuple(row["options"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold questions ({one_line(error)}); delete it, the next run of one of its "
                        "cells writes it again") from None


def _questions_file(folder: Path, asked: str) -> Path:
    return folder / "questions" / f"{Path(asked).name}.jsonl"
