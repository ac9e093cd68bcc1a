"""Run the grid cell by cell, after the preflight (harness/forecast/preflight.py); a failed cell is recorded and the
rest goes on.

Several processes may run one grid, on one machine or on several: a cell is claimed by a lock before it is begun,
and one that another process has, or whose scores, plan or weights another process is making, is put off to the end.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from core.digest import digest
from core.errors import StorageError, UserError, storage_error
from harness.jobs.board import results_folder, unit_name
from harness.jobs.post import Post
from harness.stages.case import Case, Cases
from harness.stages.cell import being_made, cell_key, in_words, run_cell, served, stored_result
from harness.stages.scores import scores_for_plan
from report.records import Result

log = logging.getLogger(__name__)
LOOK_S = 1.0  # how often a process that is out of work looks whether another has finished or died


def run_grid(cases: Cases, post: Post | None = None, groups: list[list[int]] = ()) -> list[Result]:
    """Run every cell, or find it finished by another process; returns the results, failed ones with status "error".

    groups: cells by number whose scores are made first, one of each group (harness/jobs/launch.py); several workers
    share them.
    """
    results: dict[int, Result] = {}
    folder = results_folder(cases.grid)
    for name in cases.models:
        for index, group in enumerate(groups):
            if cases[group[0]].cell.model == name:
                claim_scores([cases[i] for i in group], post, unit_name("scores", index))
        todo = [i for i, case in enumerate(cases) if case.cell.model == name]
        patient = True
        while todo:
            for i in todo:
                if (result := _attempt(cases[i], unit_name("cell", i), folder, post, patient=patient)) is not None:
                    results[i] = result
            left = [i for i in todo if i not in results]
            if left == todo:
                cases.progress.update(f"waiting for other processes: {len(left)} cells", 0, 1)
                time.sleep(LOOK_S)
            # after a round without work, wait inside a cell: that is where a dead owner's lock is found out
            patient = left != todo
            todo = left
        cases.release(name)
    return [results[i] for i in sorted(results)]


def _attempt(case: Case, unit: str, folder: Path, post: Post | None, *, patient: bool) -> Result | None:
    """Run a cell unless another process has it or (patient) is making what it needs; None if it has to wait."""
    lock = None
    with _left_to_run_cell(case):
        # one that is there needs no lock: its cache may be read-only
        if stored_result(case, folder) is None and not served(case):
            if patient and being_made(case):
                return None
            if (lock := case.store.take(claim(case))) is None:
                return None
    try:
        return run_unit(case, unit, folder, post)
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def _left_to_run_cell(case: Case) -> Iterator[None]:
    """What is wrong with a cell's keys or data will be wrong again in run_cell, which writes it down."""
    try:
        yield
    except StorageError:
        raise
    except Exception:
        log.debug("the keys of %s cannot be made", case.cell.label, exc_info=True)


def claim(case: Case) -> str:
    """The name of the lock that says who runs a cell."""
    return f"cell-{cell_key(case)}"


def run_unit(case: Case, unit: str, folder: Path, post: Post | None) -> Result:
    """Run one cell and put up on the board what became of it."""
    if post is None:
        return run_cell(case, folder)
    post.start(unit)
    try:
        result = run_cell(case, folder)
    except BaseException as error:  # the disk, Ctrl-C or a pre-emption: the cell can go on later
        post.finish("waiting", reason=_why(error))
        raise
    if result.ok:
        post.finish("done", cell=result.cell, file=result.file.stem, reason=in_words(result))
    else:
        post.finish("failed", cell=result.cell, file=result.file.stem, error=result.error)
    return result


def run_cells(cases: dict[str, Case], post: Post, check: Callable[[Case], None]) -> int:
    """Run one job's cells, by unit, one after another, and wait for who has one in hand; returns how many failed.

    check: raises UserError for a cell that cannot run here; those behind it may.
    """
    failed = 0
    for unit, case in cases.items():
        try:
            check(case)
        except StorageError:
            raise
        except (UserError, OSError) as error:
            post.board.set(unit, "failed", error=str(error))
            failed += 1
            continue
        with _claimed(case):
            failed += not run_unit(case, unit, results_folder(case.grid), post).ok
    return failed


def _claimed(case: Case) -> AbstractContextManager:
    """The cell's lock, waited for; none if its name cannot be made."""
    with _left_to_run_cell(case):
        return case.store.lock(claim(case), "cell")
    return nullcontext()


def _why(error: BaseException) -> str:
    """Why a unit stopped half-way, in words; submitit ends a job that it has put back into the queue by SystemExit."""
    if isinstance(error, SystemExit):
        return "pre-empted or out of time; queued again"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__


def claim_scores(cases: list[Case], post: Post | None, unit: str, wait: bool = False) -> None:
    """Make the scores of some cells, unless another process does or could not; an error is left to the cells."""
    if post and post.board.state(unit).get("state") == "failed":
        return
    store = cases[0].store
    try:
        lock = store.take("group-" + digest([cell_key(case) for case in cases]))
    except StorageError:
        raise
    except Exception as error:
        log.warning("the scores of %s cannot be made: %s", cases[0].cell.label, error)
        return
    if lock is None and not wait:
        return
    if post:
        post.start(unit)
    state, facts = "done", {}
    try:
        for case in cases:
            scores_for_plan(case)
    except BaseException as error:
        disk = isinstance(error, StorageError) or storage_error(error, store.root)
        ours = isinstance(error, Exception) and not disk
        state, facts = ("failed", {"error": str(error)}) if ours else ("waiting", {"reason": _why(error)})
        if not ours:
            raise
        log.warning("scores of %s failed: %s", case.cell.label, error)
    finally:
        if lock is not None:
            lock.release()
        if post:
            post.finish(state, **facts)
