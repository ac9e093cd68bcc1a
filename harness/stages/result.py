"""Results on disk: one JSON and one JSONL a cell, and how they are read back.

``results/<name>.json``    the cell, its metrics with intervals, bits per linear, stage digests, environment
``results/<name>.jsonl``   one line a document; every metric can be recomputed from it

Tables, notebook and report read these files only.  Comparisons with full precision (paired differences,
McNemar, flips, KL) are computed when a table is made, from the per-document lines of both cells.
"""

import re
from dataclasses import asdict

import numpy as np

from core.digest import digest
from core.environment import device_peak_bytes, peak_bytes, versions
from core.sample import Sample
from core.types import Plan, Scores
from evaluation.statistics.summary import by_stratum, summarise
from harness.grid import Cell, reads_solver_calib, settings
from harness.stages.documents import CellData, solver_calib
from harness.stages.model import Session
from report.records import Bits, MethodFacts, ModelFacts, Result, TaskFacts

PROBE = 64  # positions of a score tensor or mask that a result carries


def file_stem(session: Session, cell: Cell, key: str) -> str:
    """A readable file name that ends in the settings' and the cell's digests.

    fp16 and other rows that do not read a setting have one digest under all of them, and yet stand in every table.
    """
    bits = f"{cell.avg_bits:g}b" if cell.avg_bits is not None else "own"
    text = f"{session.ref.name}__{cell.dataset}__{cell.method.name}__{bits}__s{cell.seed}"
    return f"{re.sub(r'[^A-Za-z0-9_.+@-]', '-', text)}__{digest(settings(session.grid))[:6]}__{key}"


def hash_sample(made: Plan, scores: Scores | None) -> dict:
    """A fixed sample of scores and masks: PROBE positions a linear, drawn from a generator seeded by the linear's name."""
    out: dict[str, dict] = {}
    for fqn in (scores.values if scores else {}):
        flat = scores.values[fqn].flatten()
        at = np.random.default_rng(int(digest(fqn)[:8], 16)).integers(0, flat.numel(), min(PROBE, flat.numel()))
        keep = made.layers[fqn].keep if fqn in made.layers else None
        out[fqn] = {"scores": [float(f"{flat[i]:.6g}") for i in at]} if flat.numel() > 1 else {"scores": [float(f"{flat[0]:.6g}")]}
        if keep is not None and flat.numel() == keep.size:
            out[fqn] |= {"positions": at.tolist(), "kept": keep.ravel()[at].astype(int).tolist()}
    return out


def document(session: Session, cell: Cell, key: str, data: CellData, made: Plan, facts: dict, samples: list[Sample]) -> Result:
    """The result of a finished cell."""
    summary, layers = summarise(samples), {fqn: layer.bits for fqn, layer in made.layers.items()}
    return Result(
        **_head(session, cell, key), status="ok", error=None, n=len(samples), metrics=summary, task=task_facts(data),
        bits=Bits(made.avg_bits, made.model_avg_bits, made.stored_bits, session.group_size if cell.method.budgeted else None, layers, made.notes),
        stages=facts["stages"] | {"evaluation": data.eval_digest}, scoring=data.cfg.scoring, data_note=data.note,
        evaluation=asdict(data.cfg), task_version=data.task.version,
        calibration={"documents": len(data.calib.doc_ids), "truncated": data.calib.truncated, "digest": data.calib_digest},
        solver_calibration=solver_facts(session, cell, data), probe=facts["probe"], score_notes=facts["score_notes"],
        strata=by_stratum(samples), seconds=facts["seconds"], process_peak_bytes=peak_bytes(),
        device_peak_bytes=device_peak_bytes(session.device))


def task_facts(data: CellData) -> TaskFacts:
    """How the task is asked, and the accuracy of a guess."""
    if data.task.kind != "choice":
        return TaskFacts("generate", {"accuracy": "EM", "f1": "F1"})
    return TaskFacts("choice", {"accuracy": "acc"}, float(np.mean([1 / len(r.doc.options) for r in data.requests])))


def solver_facts(session: Session, cell: Cell, data: CellData) -> dict | None:
    """What solvers and gradients of this row read; None if it has none."""
    if not reads_solver_calib(cell.method):
        return None
    found, tokens = solver_calib(session, data, cell.seed)
    return {"text": found.task, "documents": len(found.doc_ids), "tokens": sum(map(len, found.tokens)),
            "asked_tokens": session.grid.calib_tokens, "truncated": found.truncated, "seed": cell.seed, "digest": tokens,
            "whole_pool": found.task == data.task.name and len(found.doc_ids) >= len(data.calib_docs)}


def failed(session: Session, cell: Cell, key: str, error: str, trace: str) -> Result:
    """The record of a cell that failed."""
    return Result(**_head(session, cell, key), status="error", error=error, traceback=trace)


def _head(session: Session, cell: Cell, key: str) -> dict:
    return {"cell": key, "model": ModelFacts(**asdict(session.ref), given=session.label), "method": MethodFacts(**asdict(cell.method)),
            "dataset": cell.dataset, "avg_bits": cell.avg_bits, "seed": cell.seed, "run_type": session.grid.run_type,
            "settings": settings(session.grid), "machine": session.machine, "versions": versions()}
