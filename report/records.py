"""Results on disk: one JSON and one JSONL a cell, and how they are read back.

``results/<name>.json``    the cell, its metrics with intervals, bits per linear, stage digests, environment
``results/<name>.jsonl``   one line a document; every metric can be recomputed from it

Tables, notebook and report read these files only.  Comparisons with full precision (paired differences,
McNemar, flips, KL) are computed when a table is made, from the per-document lines of both cells.
"""

import json
from dataclasses import asdict
from pathlib import Path

from core.checkpoint import one_line
from core.digest import atomic_write, canonical_json, digest, write_json
from core.errors import UserError
from core.sample import Sample

SCHEMA = 1

# what a table reads of every result, and of one that is well
HEAD = {"cell", "model", "method", "dataset", "avg_bits", "seed", "run_type", "settings", "machine", "status", "error"}

BODY = {"samples", "samples_digest", "metrics", "bits", "stages", "scoring", "data_note"}


def write_result(folder: Path, stem: str, content: dict, samples: list[Sample] | None) -> None:
    """Write samples first, then the summary that names them, so that a summary never lacks its lines.

    An identical result is left untouched, so a fully cached run changes no file.
    """
    if samples is not None:
        lines = "".join(canonical_json(asdict(s)) + "\n" for s in samples)
        path = folder / f"{stem}.jsonl"
        if not path.exists() or path.read_bytes() != lines.encode():
            atomic_write(path, lines)
        content = content | {"samples": f"{stem}.jsonl", "samples_digest": digest(lines)}
    path = folder / f"{stem}.json"
    if (old := read_if_whole(path)) is not None:
        volatile = {"process_peak_bytes", "device_peak_bytes", "versions", "seconds", "run_type"}
        same = {k: v for k, v in old.items() if k not in volatile} == _as_read({k: v for k, v in content.items() if k not in volatile})
        if same or (content["status"] != "ok" and old.get("status") == "ok"):  # a failed rerun does not destroy a good result
            return
    write_json(path, content)


def read_if_whole(path: Path) -> dict | None:
    """The result at ``path``; None if there is none, or a damaged one, which the next write replaces."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _as_read(content: dict) -> dict:
    """The content as it would come back from disk (tuples as lists)."""
    return json.loads(json.dumps(content))


def load_results(folder: Path, cells: set[str] | None = None) -> list[dict]:
    """Read the summaries of the cells named, or of all; a file that is not one is an error that names it."""
    folder = Path(folder)
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"results folder {str(folder)!r} {state}; run run_taq_icml.py first or pass --results_dir")
    found = []
    for path in sorted(folder.glob("*.json")):
        if cells is not None and path.stem.rpartition("__")[2] not in cells:
            continue
        content = _read_result(path)
        content["file"], content["modified"] = str(path), path.stat().st_mtime
        found.append(content)
    return found


def _read_result(path: Path) -> dict:
    """One summary, with every field that a table reads."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not read as JSON ({one_line(error)}); delete it and run the cell again, or move it out of the results "
                        "folder") from None
    if not isinstance(content, dict) or "schema" not in content:
        raise UserError(f"{path} is not a result of this harness; move it out of the results folder")
    if content["schema"] != SCHEMA:
        raise UserError(f"{path} has schema {content['schema']}, this version reads {SCHEMA}; run the cell again")
    lacks = sorted((HEAD | (BODY if content.get("status") == "ok" else set())) - set(content))
    if lacks:
        raise UserError(f"{path} lacks {lacks[0]!r} ({len(lacks)} fields), which a result of this harness has; move it out of the results folder")
    return content


def load_samples(result: dict) -> list[Sample]:
    """Read a result's per-document lines and check that they are the ones it was made from."""
    path = Path(result["file"]).with_name(result["samples"])
    if not path.is_file():
        raise UserError(f"{path} is missing; it holds the documents of {Path(result['file']).name}, run the cell again")
    if digest(path.read_text(encoding="utf-8", errors="replace")) != result["samples_digest"]:
        raise UserError(f"{path} does not match its summary; delete both and run the cell again")
    return read_samples(path)


def read_samples(path: Path) -> list[Sample]:
    """Read one JSON line a document."""
    out = []
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        logprobs = fields["choice_logprobs"]
        out.append(Sample(**fields | {"choice_logprobs": None if logprobs is None else tuple(logprobs)}))
    return out
