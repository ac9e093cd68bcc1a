"""Start a grid with the executor that was asked for, and follow it."""

import shutil
import time
from dataclasses import replace

from core.errors import UserError
from harness.board import EVERYTHING, Board, Post, forget_like, identity, part_name, runs
from harness.cluster import Options, cancel, submit_processes, submit_slurm
from harness.config import Grid, cells_of
from harness.limits import cpu_limit
from harness.preflight import preflight
from harness.progress import Progress
from harness.run import open_sessions, run_grid
from harness.status import parts
from harness.tasks import score_groups
from harness.worker import Job

FOLLOW_S = 1.0


def run_local(grid: Grid, token: str | None, progress: Progress, plugins: list[str]) -> list[dict]:
    """The whole grid in this process; its notice board is taken down when every cell is done."""
    sessions = open_sessions(grid, token, progress.say)
    preflight(grid, sessions, progress.say)
    forget_like(grid)
    board = Board.new(grid, "local", [], plugins)
    post = Post(board, EVERYTHING)
    progress.watchers.append(post.update)
    try:
        results = run_grid(grid, progress, sessions, post)
    finally:
        post.close()
    if all(r["status"] == "ok" for r in results):
        board.remove()
        forget_like(grid)  # of a twin that was killed: its cells are done now
    return results


def launch(grid: Grid, token: str | None, options: Options, plugins: list[str], say) -> tuple[Board, list]:
    """Check what can be checked here, write the run down, hand its parts to the executor; returns the run's board and its local jobs."""
    if options.executor == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError("--executor slurm: sbatch is not on this machine's path; give the command on a login node, or use --executor process")
    if options.threads and not grid.threads:
        grid = replace(grid, threads=options.threads)
    # the machine that hands jobs in need not have their GPU; keys made here only tell equal scores from different ones
    here = replace(grid, device="cpu") if options.executor == "slurm" else grid
    sessions = open_sessions(here, token, say)
    preflight(here, sessions, say, weights=options.executor != "slurm", limit=options.mem, workers=options.sharing)
    groups = score_groups(here, sessions)
    names = [identity(grid, cell, sessions[cell.model].ref.key, options.executor) for cell in cells_of(grid)]
    taken = in_other_hands(grid, names) if options.executor == "slurm" else {}
    forget_like(grid)
    memory = options.mem or (cpu_limit(None, options.sharing)[0] if options.sharing > 1 else None)  # what one worker may use
    board = Board.new(grid, options.executor, groups, plugins, memory, names)
    if options.executor == "process":
        return board, submit_processes(board, options)
    if options.executor == "debug":
        _debug(board)
    else:
        for index, facts in taken.items():
            board.set(part_name("cell", index), "elsewhere", **facts)
        try:
            jobs = submit_slurm(board, options, set(taken))
        except UserError:
            board.remove()
            raise
        say(f"Run {board.id}: {sum(j.startswith('scores') for j in jobs)} groups of scores and {len(names) - len(taken)} cells handed to SLURM"
            + (f"; {len(taken)} cells are done by earlier runs, or in their hands" if taken else ""))
    return board, []


def in_other_hands(grid: Grid, names: list[str]) -> dict[int, dict]:
    """Cells that an earlier run on the cluster has finished, runs, or has in the queue: number -> that run and part."""
    taken: dict[int, dict] = {}
    for board in runs(grid.results_dir):
        if board.run["executor"] != "slurm" or not set(names) & set(board.run["identities"]):
            continue
        states = {p.name: p.state for p in parts(board)}
        for number, name in enumerate(board.run["identities"]):
            part = part_name("cell", number)
            if name in names and states[part] != "failed":
                taken[names.index(name)] = {"run": board.id, "there": part}
    return taken


def _debug(board: Board) -> None:
    """Every part, one after another, in this process."""
    import submitit

    executor = submitit.DebugExecutor(folder=board.folder / "jobs")
    names = [part_name("scores", i) for i in range(len(board.run["scores"]))] + [part_name("cell", i) for i in range(len(board.run["cells"]))]
    for name in names:
        executor.submit(Job(str(board.folder), name)).result()


def follow(board: Board, progress: Progress, jobs: list) -> None:
    """Show cells as they end, until none is running or waiting; Ctrl-C leaves a cluster's jobs alone and ends processes."""
    told: set[str] = set()
    try:
        while True:
            ended = bool(jobs) and all(job.done() for job in jobs)
            found = [p for p in parts(board, ended) if p.name.startswith("cell-")]
            for part in found:
                if part.state in ("done", "failed") and part.name not in told:
                    told.add(part.name)
                    progress.cell_done(f"{'FAILED  ' if part.state == 'failed' else ''}{part.label}" + (f": {part.reason}" if part.reason else ""))
            running = [p for p in found if p.state == "running"]
            if running:
                progress.update(f"{len(running)} running, first: {running[0].reason}", 0, 1)
            if len(told) == len(found) and (ended or not jobs):
                return
            time.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        if board.run["executor"] == "process":
            cancel(board)
        raise
