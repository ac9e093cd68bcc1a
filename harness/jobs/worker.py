"""One job of a run: what submitit calls on whatever machine it lands.

submitit pickles a :class:`Job`, which holds a folder's name and a unit's, nothing else: the grid is read from
``run.json``, results and weights are JSON and safetensors.  A job that is pre-empted or runs out of time is queued
again and goes on: everything it finished is in the store.
"""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from core.errors import UserError
from core.plugins import load_plugin
from harness.grid import Grid, cells_of
from harness.jobs.board import EVERYTHING, Board, results_folder
from harness.jobs.post import Post


class Job:
    """A unit of a run, callable by submitit; ``checkpoint`` makes it go on after a pre-emption or a time-out."""

    def __init__(self, folder: str, unit: str):
        self.folder, self.unit = folder, unit

    def __call__(self) -> int:
        return work(Board(Path(self.folder)), self.unit)

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def job_number() -> str | None:
    """The number under which submitit keeps this process's log, if it runs under submitit."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":  # also within an allocation
        return os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def work(board: Board, unit: str) -> int:
    """Do a unit, or everything that nobody else does; returns how many cells failed."""
    from harness.progress import Progress

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("submitit").propagate = False  # it has a handler of its own
    post = Post(board, unit, job_number())
    try:
        os.chdir(board.run["cwd"])
        for path in board.run["plugins"]:
            load_plugin(path)
        grid = board.grid()
        with Progress(len(cells_of(grid)) if unit == EVERYTHING else 1) as progress:
            progress.watchers.append(post.update)
            return _work(board, grid, unit, progress=progress, post=post)
    except (UserError, OSError) as error:
        board.set(f"end-{os.getpid()}" if unit == EVERYTHING else unit, "failed", error=str(error))
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        post.close()


def _work(board: Board, grid: Grid, unit: str, *, progress, post: Post) -> int:
    from harness.forecast.preflight import preflight
    from harness.jobs.loop import claim, claim_scores, run_grid, run_unit
    from harness.stages.case import open_cases

    token, limit = os.environ.get("HF_TOKEN"), board.run["memory"]
    groups = board.run["scores"]
    if unit == EVERYTHING:
        cases = open_cases(grid, token, progress)
        preflight(cases, limit=limit)
        return sum(not result.ok for result in run_grid(cases, post, groups))
    kind, _, number = unit.rpartition("-")
    numbers = groups[int(number)] if kind == "scores" else [int(number)]
    cells = cells_of(grid)
    # its own model and data only; the methods stay, since one backward pass serves all of them
    small = replace(grid, models=(cells[numbers[0]].model,),
                    datasets=tuple(dict.fromkeys(cells[i].dataset for i in numbers)))
    cases = open_cases(small, token, progress)
    mine = [case for case in cases if case.cell in [cells[i] for i in numbers]]
    preflight(cases, limit=limit, only=mine)
    if kind == "scores":
        claim_scores(mine, post, unit, wait=True)
        return 0
    with cases.store.lock(claim(mine[0]), "cell"):
        return int(not run_unit(mine[0], unit, results_folder(grid), post).ok)
