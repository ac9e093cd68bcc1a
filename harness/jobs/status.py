"""What became of a run: --status and --collect, from its notice board, the cluster's queue and the results folder."""

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.digest import digest
from harness.grid import table_settings
from harness.jobs.board import Board
from harness.jobs.queue import ENDED, job_states
from harness.progress import clock

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "waiting": "yellow"}
AGAIN = "the same command takes it up again"


@dataclass(frozen=True)
class Unit:
    """One cell or group of scores as it stands: done, running, failed or waiting, and why."""

    name: str
    label: str
    state: str
    reason: str
    seconds: float | None = None
    job: str | None = None  # its number in the queue, or that of the worker that took it


def units(board: Board, ended: bool = False, others: dict[str, list[Unit]] | None = None) -> list[Unit]:
    """Every group of scores and every cell, in running order.

    ended: every worker on this machine is known to have gone; others: units of the runs that have this one's cells.
    """
    run, jobs, others = board.run, board.jobs(), {} if others is None else others
    queue = job_states(sorted(jobs.values()), board.id) if run["executor"] == "slurm" and jobs else {}
    living = {} if ended else {worker: board.alive(worker) for worker in board.workers()}
    begun = {job for name, job in jobs.items() if board.state(name)} if queue else set()
    return [_unit(board, name, jobs.get(name), queue=queue, begun=begun, living=living, others=others)
            for name in board.units()]


def _unit(board: Board, name: str, job: str | None, *, queue: dict, begun: set[str], living: dict[str, bool],
          others: dict[str, list[Unit]]) -> Unit:
    kind, _, number = name.rpartition("-")
    inside = [int(number)] if kind == "cell" else board.run["scores"][int(number)]
    label, facts = ", ".join(cell_label(board.run["cells"][i]) for i in inside), board.state(name)
    if facts.get("state") == "elsewhere":
        return _elsewhere(board, Unit(name, label, "failed", f"run {facts['run']} that had it is gone; {AGAIN}"),
                          facts=facts, others=others)
    if kind == "scores" and board.run["executor"] == "slurm" and not job and not facts:
        return Unit(name, label, "done", "no cell of this run needs it")
    queued = queue.get(job) if job else None
    if not facts and queued and queued[0] == "RUNNING" and job in begun:
        return Unit(name, label, "waiting", "behind other cells of its job", job=job)
    state, reason = _judge(board, facts, queued, living)
    running = time.time() - facts["since"] if state == "running" and "since" in facts else None
    return Unit(name, label, state, reason, seconds=facts.get("seconds", running), job=job or facts.get("job"))


def _elsewhere(board: Board, lost: Unit, *, facts: dict, others: dict[str, list[Unit]]) -> Unit:
    """A cell that an earlier run has in hand, as it stands there; ``lost`` if that run is gone."""
    other = Board(board.folder.with_name(facts["run"]))
    if not (other.folder / "run.json").exists():
        return lost
    if other.id not in others:
        others[other.id] = units(other, others=others)
    there = next(unit for unit in others[other.id] if unit.name == facts["there"])
    return replace(there, name=lost.name, label=lost.label, reason=f"run {other.id}: {there.reason}".removesuffix(": "))


def known(board: Board, name: str) -> dict:
    """What the worker that took a unit last said of it, in this run or in the one that has it."""
    facts = board.state(name)
    if facts.get("state") == "elsewhere":
        return known(Board(board.folder.with_name(facts["run"])), facts["there"])
    return facts


def _judge(board: Board, facts: dict, queued: tuple[str, str] | None, living: dict[str, bool]) -> tuple[str, str]:
    """A unit's true state, from what its worker last said, whether the worker lives, and what the queue says."""
    last, reason = facts.get("state"), facts.get("reason", "")
    if last in ("done", "failed"):
        return last, facts.get("error", reason)
    if queued and queued[0] in ENDED:
        ended = "pre-empted or out of time too often" if queued[0] == "COMPLETED" else f"SLURM: {queued[0]}"
        return "failed", f"{ended}{f' ({queued[1]})' if queued[1] else ''}; {AGAIN}"
    if queued and queued[0] != "RUNNING":
        return "waiting", ", ".join(filter(None, (queued[1] or queued[0].lower(), reason)))
    if last == "running" and living.get(facts["worker"]):
        return "running", facts["what"]
    if queued:
        return "running", "starting again" if facts else "starting"
    gone = "its process is gone"
    if board.run["executor"] != "slurm" and any(living.values()):
        waits = f"{gone}; another one takes it up" if last == "running" else "its turn has not come"
        return "waiting", reason or waits
    why = reason or (gone if facts else board.last_words() or "never started")
    return "failed", f"{why}, and no job of this run is left; {AGAIN}"


def cell_label(cell: dict) -> str:
    """A cell in words."""
    bits = "own bits" if cell["avg_bits"] is None else f"{cell['avg_bits']:g} bits"
    return f"{cell['method']} on {cell['dataset']}, {bits}, seed {cell['seed']} ({Path(cell['model']).name})"


def show_status(board: Board, console: Console) -> None:
    """The run in a table: counts, what runs or failed with the log's last lines, and what waits for what."""
    every = units(board)
    cells = [p for p in every if p.name.startswith("cell-")]
    counts = Counter(p.state for p in cells)
    run = board.run
    console.print(f"Run {board.id}, {run['executor']} from {run['host']}, started "
                  f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(run['started']))}")
    states = ", ".join(f"{counts.get(state, 0)} {state}" for state in ("done", "running", "failed", "waiting"))
    console.print(f"{len(cells)} cells: {states}{left(cells)}")
    table = Table("cell or scores", "state", "time", "job", "what or why")
    for unit in every:
        if unit.state in ("running", "failed"):
            why = Text(unit.reason)
            for line in board.log_tail(unit.job, 1 if unit.state == "running" else 3):
                why.append(f"\n  {line[:160]}", style="dim")
            _row(table, unit.label, unit, "-" if unit.seconds is None else clock(unit.seconds), unit.job or "-", why)
    # hundreds may wait for the same thing
    for reason in dict.fromkeys(p.reason for p in every if p.state == "waiting"):
        waiting = [p for p in every if p.state == "waiting" and p.reason == reason]
        label = waiting[0].label + (f" and {len(waiting) - 1} more" if len(waiting) > 1 else "")
        _row(table, label, waiting[0], "-", waiting[0].job or "-", Text(reason))
    if table.row_count:
        console.print(table)
    logs = board.folder / "jobs"
    console.print(f"logs: {logs.relative_to(Path.cwd()) if logs.is_relative_to(Path.cwd()) else logs}", soft_wrap=True)


def _row(table: Table, label: str, unit: Unit, *rest) -> None:
    scores = "scores: " if unit.name.startswith("scores-") else ""
    table.add_row(Text(scores + label), Text(unit.state, style=COLOURS[unit.state]), *rest)


def left(cells: list[Unit]) -> str:
    """The time that is left in words, if the cells that are done say anything about it."""
    took = [p.seconds for p in cells if p.state == "done" and p.seconds is not None]
    busy = sum(p.state == "running" for p in cells)
    todo = busy + sum(p.state == "waiting" for p in cells)
    return f"; about {clock(sum(took) / len(took) * todo / busy)} left" if took and busy and todo else ""


def collect(board: Board, console: Console) -> int:
    """Print the tables of what is finished and say what is missing; 0 if nothing is."""
    from report.records import load_results
    from report.tables.tables import group
    from report.text.terminal import show

    grid, cells = board.grid(), [p for p in units(board) if p.name.startswith("cell-")]
    keys = {known(board, p.name).get("cell") for p in cells if p.state in ("done", "failed")} - {None}
    asked = digest(table_settings(grid))
    folder = board.folder.parents[1]
    results = [r for r in load_results(folder, keys) if digest(r.settings) == asked]
    if results:
        show(group(results), console)
    missing = [p for p in cells if p.state != "done"]
    for unit in missing:
        console.print(f"{unit.state}: {unit.label}: {unit.reason}", markup=False)
    console.print(f"{len(cells) - len(missing)} of {len(cells)} cells of run {board.id} are done")
    return 1 if missing else 0
