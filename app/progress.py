"""How far a run is, from its notice board (harness/jobs/board.py): cells done, the stage in hand, the time left."""

import socket
import time
from dataclasses import dataclass

from app.jobs import Job
from harness.jobs.board import Board, runs
from harness.jobs.status import Unit, left, units
from harness.progress import clock


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
        """Cells, and the time that is left of the run."""
        return f"{self.done} of {len(self.cells)} cells{left(list(self.cells))}"


def standing(job: Job) -> Standing | None:
    """Where a running job is; None before it has its board, or if its command has none."""
    number = job.process()
    board = number and _board(job.results_dir, number)
    if not board:
        return None
    try:
        cells = tuple(unit for unit in units(board) if unit.name.startswith("cell-"))
        running = next((unit for unit in cells if unit.state == "running"), None)
        facts = board.state(running.name).get("stage") if running else None
    except (OSError, ValueError, KeyError):  # it is taken down in this moment: all cells are done
        return None
    if not facts:
        return Standing(cells, f"{running.label}: starting" if running else "")
    share = min(1.0, facts["done"] / facts["total"]) if facts["total"] else 0.0
    return Standing(cells, f"{facts['name']}: {facts['done']} of {facts['total']}{_left_of(facts, share)}", share)


def _board(results_dir: str, process: int) -> Board | None:
    mine = f"{socket.gethostname()}-{process}-"
    return next((board for board in reversed(runs(results_dir)) if any(w.startswith(mine) for w in board.workers())),
                None)


def _left_of(facts: dict, share: float) -> str:
    """The time that is left of a stage, if enough of it is done to say."""
    if not 0 < share < 1:
        return ""
    return f", about {clock((time.time() - facts['since']) * (1 - share) / share)} left"
