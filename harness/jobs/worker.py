"""One job of a run: what submitit calls on whatever machine it lands.

submitit pickles a :class:`Job`, which holds a folder's name and its units', nothing else: the grid is read from
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
from harness.jobs.board import EVERYTHING, Board
from harness.jobs.post import Post


class Job:
    """Units of a run, callable by submitit: everything, a group of scores, or cells of one model.

    ``checkpoint`` makes it go on after a pre-emption or a time-out.
    """

    def __init__(self, folder: str, *units: str):
        self.folder, self.units = folder, units

    def __call__(self) -> int:
        return work(Board(Path(self.folder)), self.units)

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def job_number() -> str | None:
    """The number under which submitit keeps this process's log, if it runs under submitit."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":  # also within an allocation
        return os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def work(board: Board, units: tuple[str, ...]) -> int:
    """Do these units, or everything that nobody else does; returns how many cells failed."""
    from harness.progress import Progress

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("submitit").propagate = False  # it has a handler of its own
    everything = units == (EVERYTHING,)
    post = Post(board, units[0], job_number())
    try:
        os.chdir(board.run["cwd"])
        for path in board.run["plugins"]:
            load_plugin(path)
        grid = board.grid()
        with Progress(len(cells_of(grid)) if everything else len(units)) as progress:
            progress.watchers.append(post.update)
            return _work(board, grid, units, progress=progress, post=post)
    except (UserError, OSError) as error:
        for unit in [f"end-{os.getpid()}"] if everything else units:
            if board.state(unit).get("state") not in ("done", "failed"):
                board.set(unit, "failed", error=str(error))
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        post.close()


def _work(board: Board, grid: Grid, units: tuple[str, ...], *, progress, post: Post) -> int:
    from harness.forecast.preflight import preflight
    from harness.jobs.loop import claim_scores, run_cells, run_grid
    from harness.stages.case import open_cases

    token, limit = os.environ.get("HF_TOKEN"), board.run["memory"]
    groups = board.run["scores"]
    if units == (EVERYTHING,):
        cases = open_cases(grid, token, progress)
        preflight(cases, limit=limit)
        return sum(not result.ok for result in run_grid(cases, post, groups))
    kind, numbers = units[0].rpartition("-")[0], [int(unit.rpartition("-")[2]) for unit in units]
    numbers = groups[numbers[0]] if kind == "scores" else numbers
    cells = cells_of(grid)
    # its own model and data only; the methods stay, since one backward pass serves all of them
    small = replace(grid, models=(cells[numbers[0]].model,),
                    datasets=tuple(dict.fromkeys(cells[i].dataset for i in numbers)))
    cases = open_cases(small, token, progress)
    mine = [next(case for case in cases if case.cell == cells[i]) for i in numbers]
    if kind == "scores":
        preflight(cases, limit=limit, only=mine)
        claim_scores(mine, post, units[0], wait=True)
        return 0
    return run_cells(dict(zip(units, mine, strict=True)), post,
                     check=lambda case: preflight(cases, limit=limit, only=[case]))
