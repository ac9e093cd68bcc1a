"""A cell from its key to its result: the chain of stages."""

import traceback
from dataclasses import replace
from pathlib import Path

from core.digest import digest
from core.errors import StorageError, UserError, storage_error
from harness.grid import Cell
from harness.progress import Progress
from harness.stages.documents import CellData, cell_data
from harness.stages.gradients import gradient_kinds, gradients_key
from harness.stages.model import Session
from harness.stages.options import reads_data
from harness.stages.plan import plan, plan_key
from harness.stages.result import document, failed, file_stem, hash_sample
from harness.stages.samples import samples, samples_key
from harness.stages.scores import scores_key
from harness.stages.weights import true_plan
from report.records import Result, write_result


def cell_key(session: Session, cell: Cell, data: CellData) -> str:
    """Digest of a whole cell, known before anything is computed: its plan's and its evaluation's inputs."""
    scored = scores_key(session, cell, data)[0] if cell.method.scorer else None
    return samples_key(session, cell, data, f"{cell.method.name}:{plan_key(session, cell, scored)[0]}")[0]


def upstream_keys(session: Session, cell: Cell, data: CellData) -> list[str]:
    """Digests of what a cell's scores are made of, and of the scores: what another process may be making just now."""
    kinds = gradient_kinds(cell.method.scorer, cell.method.quantizer)
    found = [gradients_key(session, cell, data, kind)[0] for kind in sorted(kinds)]
    return found + ([scores_key(session, cell, data)[0]] if cell.method.scorer else [])


def run_cell(session: Session, cell: Cell, folder: Path, progress: Progress) -> Result:
    """Run one cell through its stages and write its result; an error is written down, not raised, unless the disk refuses."""
    label = f"{cell.method.name} on {cell.dataset}"
    key = digest([session.ref.key, cell.method.name, cell.dataset, cell.avg_bits, cell.seed])  # if even its own key cannot be made
    try:
        data = cell_data(session, cell.dataset)
        key = cell_key(session, cell, data)
        result, found = compute_cell(session, cell, key, data, progress)
    except Exception as error:  # recorded with its traceback; the grid goes on and the exit code tells
        stop = error if isinstance(error, StorageError) else storage_error(error, session.store.root)
        if stop:
            raise stop from error
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        result, found = failed(session, cell, key, text, traceback.format_exc()), None
    stem = file_stem(session, cell, key)
    write_result(folder, stem, result, found)
    if result.ok:
        accuracy, loglik = result.metrics["accuracy"], result.metrics["gold_loglik"]
        progress.cell_done(f"{label}: accuracy {accuracy.value:.3f}, gold log-likelihood {loglik.value:.3f} "
                           f"nats/token at {result.bits.average:.3f} bits")
    else:
        progress.cell_done(f"FAILED  {label}: {result.error}")
    return replace(result, file=folder / f"{stem}.json")


def compute_cell(session: Session, cell: Cell, cell_id: str, data: CellData, progress: Progress):
    """The chain of stages; returns (result document, samples)."""
    plan_id, made, scored, facts = plan(session, cell, data, progress)
    notes = {"probe": hash_sample(made, scored), "score_notes": scored.notes if scored else {}}
    del scored  # element scores are as large as the model; 64 of each linear are kept
    key, found, seconds, batched = samples(session, cell, data, plan_id, made, progress)
    stages = {"scores": facts["scores"], "plan": plan_id, "plan_entry": facts.get("plan_entry"), "samples": key}
    timing = {"scores": facts["score_seconds"], "samples": seconds}
    if reads_data(cell):
        stages["weights"], made, solved = true_plan(session, cell, data, plan_id, made, progress)
        timing["weights"] = solved.pop("seconds")
        made.notes["solver"] = solved
    return document(session, cell, cell_id, batched, made, notes | {"stages": stages, "seconds": timing}, found), found
