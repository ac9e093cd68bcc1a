"""What became of a run: --status and --collect, from its notice board, the cluster's queue and the results folder."""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.grid import settings
from harness.jobs.board import Board
from harness.jobs.queue import ENDED, job_states
from harness.progress import clock

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "waiting": "yellow"}
AGAIN = "the same command takes it up again"


@dataclass(frozen=True)
class Part:
    """One cell or group of scores as it stands: done, running, failed or waiting, and why."""

    name: str
    label: str
    state: str
    reason: str
    seconds: float | None
    job: str | None  # its number in the queue, or that of the worker that took it


def parts(board: Board, ended: bool = False, others: dict[str, list[Part]] | None = None) -> list[Part]:
    """Every group of scores and every cell, in running order.

    ended: it is known that every worker on this machine has gone; others: what earlier runs that have cells in hand were found to be.
    """
    run, jobs, others = board.run, board.jobs(), {} if others is None else others
    queue = job_states(sorted(jobs.values()), board.id) if run["executor"] == "slurm" and jobs else {}
    living = {} if ended else {worker: board.alive(worker) for worker in board.workers()}
    return [_part(board, name, jobs.get(name), queue, living, others) for name in board.parts()]


def _part(board: Board, name: str, job: str | None, queue: dict, living: dict[str, bool], others: dict[str, list[Part]]) -> Part:
    kind, _, number = name.rpartition("-")
    cells = board.run["cells"]
    label = cell_label(cells[int(number)]) if kind == "cell" else ", ".join(cell_label(cells[i]) for i in board.run["scores"][int(number)])
    found = board.state(name)
    if found and found["state"] == "elsewhere":
        return _elsewhere(board, name, found, others)
    if kind == "scores" and board.run["executor"] == "slurm" and not job and not found:
        return Part(name, label, "done", "no cell of this run needs it", None, None)
    state, reason = _judge(board, found, queue.get(job) if job else None, living)
    seconds = None
    if found and "since" in found:
        seconds = found["seconds"] if "seconds" in found else time.time() - found["since"] if state == "running" else None
    return Part(name, label, state, reason, seconds, job or (found or {}).get("job"))


def _elsewhere(board: Board, name: str, found: dict, others: dict[str, list[Part]]) -> Part:
    """A cell that an earlier run has in hand, as it stands there."""
    other = Board(board.folder.with_name(found["run"]))
    label = cell_label(board.run["cells"][int(name.rpartition("-")[2])])
    if not (other.folder / "run.json").exists():
        return Part(name, label, "failed", f"run {found['run']} that had it is gone; {AGAIN}", None, None)
    if other.id not in others:
        others[other.id] = parts(other, others=others)
    part = next(p for p in others[other.id] if p.name == found["there"])
    return Part(name, label, part.state, " ".join(filter(None, (f"run {other.id}", part.reason))), part.seconds, part.job)


def known(board: Board, name: str) -> dict:
    """What the worker that took a part last said of it, in this run or in the one that has it."""
    found = board.state(name) or {}
    if found.get("state") == "elsewhere":
        return known(Board(board.folder.with_name(found["run"])), found["there"])
    return found


def _judge(board: Board, found: dict | None, queued: tuple[str, str] | None, living: dict[str, bool]) -> tuple[str, str]:
    """A part's true state, from what its worker last said, whether the worker lives, and what the queue says."""
    if found and found["state"] in ("done", "failed"):
        return found["state"], found.get("error", found.get("reason", ""))
    if queued and queued[0] in ENDED:
        ended = "pre-empted or out of time too often" if queued[0] == "COMPLETED" else f"SLURM: {queued[0]}"
        return "failed", f"{ended}{f' ({queued[1]})' if queued[1] else ''}; {AGAIN}"
    if queued and queued[0] != "RUNNING":
        return "waiting", ", ".join(filter(None, (queued[1] or queued[0].lower(), found.get("reason") if found else None)))
    if found and found["state"] == "running" and living.get(found["worker"]):
        return "running", found["what"]
    if queued:
        return "running", "starting" if not found else "starting again"
    if board.run["executor"] != "slurm" and any(living.values()):
        why = "its process is gone; another one takes it up" if found and found["state"] == "running" else "its turn has not come"
        return "waiting", found.get("reason", why) if found else why
    why = found.get("reason", "its process is gone") if found else board.last_words() or "never started"
    return "failed", f"{why}, and no job of this run is left; {AGAIN}"


def cell_label(cell: dict) -> str:
    """A cell in words."""
    bits = "own bits" if cell["avg_bits"] is None else f"{cell['avg_bits']:g} bits"
    return f"{cell['method']} on {cell['dataset']}, {bits}, seed {cell['seed']} ({Path(cell['model']).name})"


def show_status(board: Board, console: Console) -> None:
    """The run in a table: counts, then what runs or failed, with the reason and the log's last lines, and what waits for what."""
    found = parts(board)
    cells = [p for p in found if p.name.startswith("cell-")]
    counts = Counter(p.state for p in cells)
    run = board.run
    console.print(f"Run {board.id}, {run['executor']} from {run['host']}, started {time.strftime('%Y-%m-%d %H:%M', time.localtime(run['started']))}")
    console.print(f"{len(cells)} cells: " + ", ".join(f"{counts.get(s, 0)} {s}" for s in ("done", "running", "failed", "waiting")) + _left(cells))
    table = Table("part", "state", "time", "job", "what or why")
    for part in found:
        if part.state in ("running", "failed"):
            why = Text(part.reason)
            for line in board.log_tail(part.job, 1 if part.state == "running" else 3):
                why.append(f"\n  {line[:160]}", style="dim")
            _row(table, part.label, part, "-" if part.seconds is None else clock(part.seconds), part.job or "-", why)
    for reason in dict.fromkeys(p.reason for p in found if p.state == "waiting"):  # hundreds may wait for the same thing
        waiting = [p for p in found if p.state == "waiting" and p.reason == reason]
        label = waiting[0].label + (f" and {len(waiting) - 1} more" if len(waiting) > 1 else "")
        _row(table, label, waiting[0], "-", waiting[0].job or "-", Text(reason))
    if table.row_count:
        console.print(table)
    logs = board.folder / "jobs"
    console.print(f"logs: {logs.relative_to(Path.cwd()) if logs.is_relative_to(Path.cwd()) else logs}", soft_wrap=True)


def _row(table: Table, label: str, part: Part, *rest) -> None:
    scores = "scores: " if part.name.startswith("scores-") else ""
    table.add_row(Text(scores + label), Text(part.state, style=COLOURS[part.state]), *rest)


def _left(cells: list[Part]) -> str:
    """The time that is left, if the cells that are done say anything about it."""
    took = [p.seconds for p in cells if p.state == "done" and p.seconds is not None]
    busy = sum(p.state == "running" for p in cells)
    todo = busy + sum(p.state == "waiting" for p in cells)
    return f"; about {clock(sum(took) / len(took) * todo / busy)} left" if took and busy and todo else ""


def collect(board: Board, console: Console) -> int:
    """Print the tables of what is finished and say what is missing; 0 if nothing is."""
    from report.records import load_results
    from report.tables.tables import group
    from report.text.terminal import show

    grid, found = board.grid(), [p for p in parts(board) if p.name.startswith("cell-")]
    keys = {known(board, p.name).get("cell") for p in found if p.state in ("done", "failed")} - {None}
    asked = json.loads(json.dumps(settings(grid)))
    folder = board.folder.parents[1]
    results = [r for r in load_results(folder, keys) if r.settings == asked]
    if results:
        show(group(results), console)
    missing = [p for p in found if p.state != "done"]
    for part in missing:
        console.print(f"{part.state}: {part.label}: {part.reason}", markup=False)
    console.print(f"{len(found) - len(missing)} of {len(found)} cells of run {board.id} are done")
    return 1 if missing else 0
