"""Run the grid cell by cell, after the preflight (harness/forecast/preflight.py); a failed cell is recorded and the rest goes on.

Several processes may run one grid, on one machine or on several: a cell is claimed by a lock before it is begun,
and one that another process has, or that waits for scores another process is making, is put off to the end.
"""

import logging
import time
from pathlib import Path

from core.digest import digest
from core.errors import StorageError, UserError, storage_error
from harness.grid import Cell, Grid, cells_of
from harness.jobs.board import Post, part_name, results_folder
from harness.progress import Progress
from harness.stages.cell import cell_key, run_cell, upstream_keys
from harness.stages.documents import cell_data
from harness.stages.model import Session
from harness.stages.scores import scores
from harness.store.store import Store

log = logging.getLogger(__name__)

LOOK_S = 1.0  # how often a process that is out of work looks whether another has finished or died


def open_sessions(grid: Grid, token: str | None, say) -> dict[str, Session]:
    """One session a model; a name that cannot be used is an error before any work."""
    store = Store(Path(grid.cache_dir))
    store.sweep()
    return {name: Session(name, grid, store, token, say) for name in grid.models}


def run_grid(grid: Grid, progress: Progress, sessions: dict[str, Session], post: Post | None = None,
             groups: list[list[int]] = ()) -> list[dict]:
    """Run every cell, or find it finished by another process; returns the results, failed ones with status "error".

    groups: cells by number whose scores are made first, one of each group (harness/jobs/launch.py); several workers share them.
    """
    found: dict[int, dict] = {}
    folder = results_folder(grid)
    cells = cells_of(grid)
    for name in grid.models:
        session = sessions[name]
        for index, group in enumerate(groups):
            if cells[group[0]].model == name:
                claim_scores(session, [cells[i] for i in group], progress, post, part_name("scores", index))
        todo = [i for i, cell in enumerate(cells) if cell.model == name]
        patient = True
        while todo:
            left = [i for i in todo if not _try(session, cells[i], i, folder, progress, post, found, patient)]
            if left == todo:
                progress.update(f"waiting for other processes: {len(left)} cells", 0, 1)
                time.sleep(LOOK_S)
            patient = left != todo  # after a round without work, wait inside a cell: that is where a dead owner's lock is found out
            todo = left
        session.release()
    return [found[i] for i in sorted(found)]


def _try(session: Session, cell: Cell, index: int, folder: Path, progress: Progress, post: Post | None, found: dict, patient: bool) -> bool:
    """Run a cell unless another process has it or (patient) is making what it needs; whether it is done."""
    try:
        if patient and any(session.store.busy(key) for key in upstream_keys(session, cell, cell_data(session, cell.dataset))):
            return False
        lock = session.store.take(claim(session, cell))
    except UserError:  # what is wrong will be wrong again in run_cell, which writes it down
        lock = None
    else:
        if lock is None:
            return False
    try:
        found[index] = run_part(session, cell, part_name("cell", index), folder, progress, post)
    finally:
        if lock is not None:
            lock.release()
    return True


def claim(session: Session, cell: Cell) -> str:
    """The name of the lock that says who runs a cell."""
    return f"cell-{cell_key(session, cell, cell_data(session, cell.dataset))}"


def run_part(session: Session, cell: Cell, part: str, folder: Path, progress: Progress, post: Post | None) -> dict:
    """Run one cell and put up on the board what became of it."""
    if post is None:
        return run_cell(session, cell, folder, progress)
    post.start(part)
    try:
        result = run_cell(session, cell, folder, progress)
    except BaseException as error:  # the disk, Ctrl-C or a pre-emption: the cell can go on later
        post.finish("waiting", reason=_why(error))
        raise
    if result.ok:
        post.finish("done", cell=result.cell, file=result.file.stem)
    else:
        post.finish("failed", cell=result.cell, file=result.file.stem, error=result.error)
    return result


def _why(error: BaseException) -> str:
    """Why a part stopped half-way, in words; submitit ends a job that it has put back into the queue by SystemExit."""
    if isinstance(error, SystemExit):
        return "pre-empted or out of time; queued again"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__


def claim_scores(session: Session, cells: list[Cell], progress: Progress, post: Post | None, part: str, wait: bool = False) -> None:
    """Make the scores of some cells, unless another process does or found that it cannot; an error is left to the cells, which write it down."""
    if post and (post.board.state(part) or {}).get("state") == "failed":
        return
    try:
        keyed = [(cell, cell_data(session, cell.dataset)) for cell in cells]
        lock = session.store.take("group-" + digest([cell_key(session, *both) for both in keyed]))
    except UserError:
        return
    if lock is None and not wait:
        return
    if post:
        post.start(part)
    state, facts = "done", {}
    try:
        for cell, data in keyed:
            scores(session, cell, data, progress)
    except BaseException as error:
        ours = isinstance(error, Exception) and not isinstance(error, StorageError) and not storage_error(error, session.store.root)
        state, facts = ("failed", {"error": str(error)}) if ours else ("waiting", {"reason": _why(error)})
        if not ours:
            raise
        log.warning("scores of %s on %s failed: %s", cell.method.name, cell.dataset, error)
    finally:
        if lock is not None:
            lock.release()
        if post:
            post.finish(state, **facts)
