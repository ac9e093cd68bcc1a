"""Run the grid: preflight, then cell by cell; a failed cell is recorded and the rest goes on."""

import logging
import traceback
from pathlib import Path

from core.digest import digest
from core.errors import UserError
from harness.config import Cell, Grid, cells_of
from harness.data import CellData, cell_data
from harness.keys import cell_key
from harness.preflight import preflight
from harness.progress import Progress
from harness.results import document, failed, file_stem, hash_sample, write_result
from harness.samples import samples
from harness.session import Session
from harness.stages import plan
from harness.store import Store
from harness.weights import reads_data, true_plan

log = logging.getLogger(__name__)


def open_sessions(grid: Grid, token: str | None, say) -> dict[str, Session]:
    """One session a model; a name that cannot be used is an error before any work."""
    store = Store(Path(grid.cache_dir))
    return {name: Session(name, grid, store, token, say) for name in grid.models}


def run_grid(grid: Grid, token: str | None, progress: Progress, sessions: dict[str, Session]) -> list[dict]:
    """Run every cell; returns the results, failed ones with status "error"."""
    preflight(grid, sessions, progress.say)
    results, folder = [], Path(grid.results_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name in grid.models:
        session = sessions[name]
        for cell in (c for c in cells_of(grid) if c.model == name):
            results.append(run_cell(session, cell, folder, progress))
        session.release()
    return results


def run_cell(session: Session, cell: Cell, folder: Path, progress: Progress) -> dict:
    """Run one cell through its stages and write its result; an error is written down, not raised."""
    data, label = cell_data(session, cell.dataset), f"{cell.method.name} on {cell.dataset}"
    key = digest([session.ref.key, cell.method.name, cell.dataset, cell.avg_bits, cell.seed])  # if even its own key cannot be made
    try:
        key = cell_key(session, cell, data)
        content, found = compute_cell(session, cell, key, data, progress)
    except Exception as error:  # recorded with its traceback; the grid goes on and the exit code tells
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        content = failed(session, cell, key, text, traceback.format_exc())
        write_result(folder, file_stem(session, cell, key), content, None)
        progress.cell_done(f"FAILED  {label}: {text}")
        return content
    write_result(folder, file_stem(session, cell, key), content, found)
    metrics = content["metrics"]
    progress.cell_done(f"{label}: accuracy {metrics['accuracy']['value']:.3f}, gold log-likelihood {metrics['gold_loglik']['value']:.3f} "
                       f"nats/token at {content['bits']['average']:.3f} bits")
    return content


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
