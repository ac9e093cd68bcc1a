"""The notice board of a run: ``<results>/.runs/<id>/``, read by --status, --collect and --cancel on any host.

``run.json``            the grid as asked, its cells, who runs it and how; written once
``jobs.json``           which job does which unit, once jobs are submitted
``state/<unit>.json``   what is known of one unit of work: a cell (``cell-12``) or a group of scores (``scores-3``)
``alive/<worker>``      a lease (core/locks.py) that a worker, and who launched it, holds as long as it lives
``jobs/``               what submitit keeps: its pickles (of this folder's name and a unit, never data) and the logs

A run's id is new every time, since a cluster that was reset gives out old job numbers again.
"""

import json
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from core.digest import write_json
from core.errors import UserError, storage_error
from core.locks import LEASE_S, held, idle, take
from harness.grid import Grid, cells_of, grid_of

RUNS = ".runs"
LAUNCHER = "launcher"
EVERYTHING = "all"  # the unit of a worker that does whatever nobody else does
SCHEMA = 1


def unit_name(kind: str, index: int) -> str:
    """The name of a cell or of a group of scores."""
    return f"{kind}-{index}"


def process_name(what: str) -> str:
    """The name under which this process holds a lease."""
    return f"{socket.gethostname()}-{os.getpid()}-{what}"


def process_number(worker: str) -> int:
    """The process number in such a name; host and unit have dashes of their own."""
    return int(re.match(rf"{re.escape(socket.gethostname())}-(\d+)-", worker)[1])


class Board:
    """One run's folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._run: dict | None = None
        self._lease = None

    @classmethod
    def new(cls, grid: Grid, executor: str, groups: list[list[int]], plugins: list[str], memory: int | None = None,
            identities: list[str] = ()) -> "Board":
        """Write a run down before anything is started."""
        results_folder(grid)
        stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        board = cls(Path(grid.results_dir).absolute() / RUNS / stamp)
        cells = [{"model": c.model, "dataset": c.dataset, "method": c.method.name, "avg_bits": c.avg_bits,
                  "seed": c.seed} for c in cells_of(grid)]
        try:
            for name in ("state", "alive"):
                (board.folder / name).mkdir(parents=True)
            # before anybody can see the run: one that has no worker yet is not one that nobody works on
            board._lease = take(board.folder / "alive" / process_name(LAUNCHER))
            write_json(board.folder / "run.json", {
                "schema": SCHEMA, "id": stamp, "executor": executor, "host": socket.gethostname(), "cwd": os.getcwd(),
                "started": time.time(),
                "plugins": plugins, "memory": memory, "grid": asdict(grid), "cells": cells,
                "identities": list(identities), "scores": groups})
        except OSError as error:
            raise storage_error(error, board.folder) or error from None
        return board

    @property
    def run(self) -> dict:
        """What ``run.json`` says."""
        if self._run is None:
            try:
                self._run = json.loads((self.folder / "run.json").read_text())
                if self._run["schema"] != SCHEMA:
                    raise ValueError
            except (OSError, ValueError, KeyError, TypeError):
                raise UserError(f"{str(self.folder)!r} holds no run that this version can read; --status without a "
                                "name takes the latest") from None
        return self._run

    @property
    def id(self) -> str:
        return self.run["id"]

    def units(self) -> list[str]:
        """The names of every group of scores and every cell, in running order."""
        return [unit_name(kind, i) for kind, key in (("scores", "scores"), ("cell", "cells"))
                for i in range(len(self.run[key]))]

    def grid(self) -> Grid:
        """The grid as it was asked."""
        return grid_of(self.run["grid"])

    def write_jobs(self, jobs: dict) -> None:
        write_json(self.folder / "jobs.json", jobs)

    def jobs(self) -> dict:
        """unit -> job number, empty as long as nothing is submitted."""
        path = self.folder / "jobs.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def set(self, unit: str, state: str, **facts) -> None:
        """Put up what is known of a unit: waiting, running, done or failed."""
        write_json(self.folder / "state" / f"{unit}.json", {"state": state, "time": time.time(), **facts})

    def state(self, unit: str) -> dict:
        """What is known of a unit; empty before anybody has taken it."""
        try:
            return json.loads((self.folder / "state" / f"{unit}.json").read_text())
        except FileNotFoundError:
            return {}

    def alive(self, worker: str) -> bool:
        """Whether a worker lives."""
        return held(self.folder / "alive" / worker)

    def close(self) -> None:
        """Who launched the run is done with it."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def workers(self) -> list[str]:
        """Names of the workers that have not ended in good order."""
        return sorted(p.name for p in (self.folder / "alive").glob("*") if not p.name.startswith(".")
                      and ".break." not in p.name)

    def last_words(self) -> str:
        """What a worker said that ended before it had taken up any unit."""
        ends = sorted((self.folder / "state").glob("end-*.json"), key=lambda p: p.stat().st_mtime)
        return json.loads(ends[-1].read_text())["error"] if ends else ""

    def log_tail(self, job: str | None, lines: int = 3) -> list[str]:
        """The last lines of a job's log."""
        for name in (f"{job}_0_log.err", f"{job}_0_log.out"):
            path = self.folder / "jobs" / name
            if job and path.exists():
                tail = [line.rstrip() for line in path.read_text(errors="replace").splitlines()
                         if line.strip() and not line.startswith("submitit INFO")]
                if tail:
                    return tail[-lines:]
        return []

    def remove(self) -> None:
        """Forget the run; its results stay."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.parent.rmdir()
        except OSError:  # other runs are on the board
            pass


def results_folder(grid: Grid) -> Path:
    """The folder of the results, made if it is not there."""
    folder = Path(grid.results_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".tmp-*"):  # a kill while a result was written
            if time.time() - left.stat().st_mtime > LEASE_S:
                left.unlink(missing_ok=True)
    except FileNotFoundError:  # another process removed it just now
        return folder
    except OSError as error:
        raise UserError(f"results folder {str(folder)!r} cannot be made ({error.strerror}); choose another with "
                        "--results_dir") from None
    return folder


def runs(results_dir: str) -> list[Board]:
    """All runs of a results folder that can be read, oldest first; one may be taken down at any moment."""
    boards = []
    for path in sorted((Path(results_dir).absolute() / RUNS).glob("*/run.json")):
        board = Board(path.parent)
        with suppress(UserError):
            if board.run:  # read now and kept, whatever becomes of the file
                boards.append(board)
    return boards


def find_run(results_dir: str, name: str | None) -> Board:
    """The run of that name, or the latest."""
    boards = runs(results_dir)
    if not boards:
        raise UserError(f"no run is recorded in {results_dir!r}; start one, or name its folder with --results_dir")
    if not name:
        return boards[-1]
    chosen = [b for b in boards if b.folder.name == name]
    if not chosen:
        raise UserError(f"no run {name!r} in {results_dir!r}; there are: "
                        f"{', '.join(b.folder.name for b in boards[-5:])}")
    return chosen[0]


def forget_like(grid: Grid) -> None:
    """Take down earlier runs of the same grid on this machine that nobody works on: a new run takes over."""
    for board in runs(grid.results_dir):
        same = board.run["executor"] != "slurm" and board.grid() == grid
        if same and not any(map(board.alive, board.workers())):
            board.remove()
    # a kill between making and writing, or in taking down
    for folder in (Path(grid.results_dir).absolute() / RUNS).glob("*"):
        age = idle(folder)
        if not (folder / "run.json").exists() and age is not None and age > 2 * LEASE_S:
            shutil.rmtree(folder, ignore_errors=True)
