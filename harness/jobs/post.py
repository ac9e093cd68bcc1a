"""A worker's own place on the notice board: it holds a lease, and says what it does."""

import socket
import time

from core.locks import take
from harness.jobs.board import Board, process_name

UPDATE_S = 5.0  # a running unit's state is written at most this often


class Post:
    """Puts one worker's progress on the board; the throttle keeps a file server calm."""

    def __init__(self, board: Board, unit: str, job: str | None = None):
        worker = process_name(unit)
        self.board, self.unit, self.since, self.last = board, None, 0.0, 0.0
        self.stage, self.stage_since = "", 0.0
        self.who = {"worker": worker, "job": job, "host": socket.gethostname()}
        self.lease = take(board.folder / "alive" / worker)
        if self.lease is None:
            raise RuntimeError(f"a worker named {worker} is already at work on {board.id}")

    def start(self, unit: str) -> None:
        """Work on a unit begins."""
        self.unit, self.since, self.last, self.stage = unit, time.time(), time.monotonic(), ""
        self.board.set(unit, "running", since=self.since, what="starting", **self.who)

    def update(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage are finished."""
        if what != self.stage:
            self.stage, self.stage_since = what, time.time()
        if self.unit and time.monotonic() - self.last >= UPDATE_S:
            self.last = time.monotonic()
            stage = {"name": what, "done": done, "total": total, "since": self.stage_since}
            self.board.set(self.unit, "running", since=self.since, what=f"{what} {done}/{total}", stage=stage,
                           **self.who)

    def finish(self, state: str, **facts) -> None:
        """The unit in hand is done, failed, or waiting again."""
        unit, self.unit = self.unit, None
        if unit:
            self.board.set(unit, state, since=self.since, seconds=time.time() - self.since, **self.who, **facts)

    def close(self) -> None:
        """The worker ends."""
        self.lease.release()
