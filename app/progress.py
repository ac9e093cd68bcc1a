"""How far a run is, from its notice board (harness/jobs/board.py): cells done, the stage in hand, the time left."""

import socket
import time
from dataclasses import dataclass

from app.jobs import Job
from harness.jobs.board import Board, runs
from harness.jobs.status import Unit, known, left, units
from harness.progress import clock

LEAST = 0.05  # of a stage, before its time says anything


@dataclass(frozen=True)
class Standing:
    """A run as it stands."""

    cells: tuple[Unit, ...]
    stage: str = ""  # in words, with the time that is left of it
    share: float = 0.0  # of the stage

    @property
    def done(self) -> int:
        return sum(unit.state in ("done", "failed") for unit in self.cells)

    @property
    def words(self) -> str:
        """Cells, and the time that is left of the run while several are left: the last one tells its own."""
        more = left(list(self.cells)) if len(self.cells) - self.done > 1 else ""
        return f"{self.done} of {len(self.cells)} cells{more}"


def standing(job: Job) -> Standing | None:
    """Where a running job is; None before it has its board, or if its command has none."""
    number = job.process()
    board = number and _board(job.results_dir, number)
    if not board:
        return None
    try:
        cells = tuple(unit for unit in units(board) if unit.name.startswith("cell-"))
        running = next((unit for unit in cells if unit.state == "running"), None)
        facts = known(board, running.name) if running else {}
    except (OSError, ValueError, KeyError):  # it is taken down in this moment: all cells are done
        return None
    if not (stage := facts.get("stage")):
        return Standing(cells, f"{running.label}: starting" if running else "")
    share = min(1.0, stage["done"] / stage["total"]) if stage["total"] else 0.0
    words = f"{stage['name']}: {stage['done']} of {stage['total']}{_left_of(stage['since'], facts['time'], share)}"
    return Standing(cells, words, share)


def _board(results_dir: str, process: int) -> Board | None:
    mine = f"{socket.gethostname()}-{process}-"
    return next((board for board in reversed(runs(results_dir)) if any(w.startswith(mine) for w in board.workers())),
                None)


def _left_of(since: float, told: float, share: float) -> str:
    """The time that is left of a stage that had come so far when it was told of; nothing before a twentieth."""
    if not LEAST <= share < 1:
        return ""
    return f", about {clock(max(0.0, (told - since) * (1 - share) / share - (time.time() - told)))} left"
