"""Start a grid with the executor that was asked for, and follow it."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

from core.digest import digest, file_sha256
from core.errors import UserError
from harness.forecast.limits import cpu_limit
from harness.forecast.preflight import preflight
from harness.grid import Grid, table_settings
from harness.jobs.board import EVERYTHING, Board, forget_like, runs, unit_name
from harness.jobs.executors import bundles, submit_processes, submit_slurm
from harness.jobs.loop import run_grid
from harness.jobs.options import Options
from harness.jobs.post import Post
from harness.jobs.status import units
from harness.jobs.worker import Job
from harness.progress import Progress
from harness.stages.case import Case, Cases, open_cases
from harness.stages.cell import cell_key, upstream
from harness.stages.scores import scores_key
from report.records import Result, read_if_whole

FOLLOW_S = 1.0


def run_local(grid: Grid, token: str | None, progress: Progress, plugins: list[str]) -> list[Result]:
    """The whole grid in this process; its notice board is taken down when every cell is done."""
    cases = open_cases(grid, token, progress)
    preflight(cases)
    forget_like(grid)
    board = Board.new(grid, "local", [], plugins)
    post = Post(board, EVERYTHING)
    progress.watchers.append(post.update)
    try:
        results = run_grid(cases, post)
    finally:
        post.close()
        board.close()
    if all(result.ok for result in results):
        board.remove()
        forget_like(grid)  # of a twin that was killed: its cells are done now
    return results


def launch(grid: Grid, token: str | None, options: Options, plugins: list[str],
           progress: Progress) -> tuple[Board, list]:
    """Check what can be checked here, write the run down, hand it to the executor; returns board and local jobs."""
    check_place(grid, options)
    # the machine that hands jobs in need not have their GPU; keys made here only tell equal cells from different ones
    dtype = "bf16" if grid.dtype == "auto" and options.gpus else grid.dtype
    on_cpu = replace(grid, device="cpu", grad_device=None, eval_device=None, dtype=dtype)
    here = on_cpu if options.executor == "slurm" else grid
    cases = open_cases(here, token, progress)
    cases.computes = False  # the jobs do
    preflight(cases, weights=options.executor != "slurm", limit=options.mem_bytes, workers=options.sharing,
              gpus=options.gpus)
    groups, readers = score_groups(cases)
    asked = [sorted(devices(grid).items()), grid.dtype, options.executor, options.gpus]
    names = [identity(case, asked, plugins) for case in cases]
    taken = in_other_hands(grid, names) if options.executor == "slurm" else {}
    forget_like(grid)
    # what one worker may use
    memory = options.mem_bytes or (cpu_limit(None, options.sharing)[0] if options.sharing > 1 else None)
    board = Board.new(grid, options.executor, groups, plugins, memory=memory, identities=names)
    jobs: list = []
    if options.executor == "process":
        jobs = submit_processes(board, options)
    elif options.executor == "debug":
        _debug(board, options)
    else:
        _hand_in(board, options, taken, readers=readers, say=progress.say)
    return board, jobs


def check_place(grid: Grid, options: Options) -> None:
    """An executor that cannot work here is an error before anything is read."""
    if options.executor == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError("--executor slurm: sbatch is not on this machine's path; give the command on a login node, or "
                        "use --executor process")
    numbered = {name: text for name, text in devices(grid).items() if any(letter.isdigit() for letter in text)}
    if options.executor == "process" and numbered:
        name, text = next(iter(numbered.items()))
        raise UserError(f"--{name} {text} with --executor process would put every worker on one GPU; use "
                        f"--{name} cuda, and CUDA_VISIBLE_DEVICES to choose GPUs")


def devices(grid: Grid) -> dict[str, str]:
    """The devices that the grid names, by flag."""
    named = {"device": grid.device, "grad_device": grid.grad_device, "eval_device": grid.eval_device}
    return {name: text for name, text in named.items() if text}


def identity(case: Case, asked: list, plugins: list[str]) -> str:
    """What makes a cell the same in two runs on a cluster: its key here, what is asked of jobs, the plugins' text."""
    texts = [file_sha256(path) for path in plugins]
    try:
        key = cell_key(case)
    except UserError as error:  # the cell will say so itself
        key = str(error)
    return digest([key, table_settings(case.grid), asked, texts])


def _hand_in(board: Board, options: Options, taken: dict[int, dict], *, readers: list[set[int]], say) -> None:
    for index, facts in taken.items():
        board.set(unit_name("cell", index), "elsewhere", **facts)
    try:
        jobs = submit_slurm(board, options, set(taken), readers)
    except UserError:
        board.remove()
        raise
    board.close()
    cells = len(board.run["cells"]) - len(taken)
    say(f"Run {board.id}: {sum(j.startswith('scores') for j in jobs)} groups of scores and {cells} cells handed to "
        "SLURM"
        + (f"; {len(taken)} cells are done by earlier runs, or in their hands" if taken else ""))


def in_other_hands(grid: Grid, names: list[str]) -> dict[int, dict]:
    """Cells that an earlier run on the cluster has finished, runs, or has in the queue: number -> that run and unit."""
    taken: dict[int, dict] = {}
    for board in runs(grid.results_dir):
        if board.run["executor"] != "slurm" or not set(names) & set(board.run["identities"]):
            continue
        states = {p.name: p.state for p in units(board)}
        for number, name in enumerate(board.run["identities"]):
            unit = unit_name("cell", number)
            facts = board.state(unit)
            if name not in names or facts.get("state") == "elsewhere" or states[unit] == "failed":
                continue  # the run that really has it is looked at as well
            if states[unit] != "done" or _is_there(grid, facts):
                taken[names.index(name)] = {"run": board.id, "there": unit}
    return taken


def _is_there(grid: Grid, facts: dict) -> bool:
    """Whether the result that a board speaks of is in the folder, and whole."""
    result = read_if_whole(Path(grid.results_dir) / f"{facts.get('file')}.json")
    return bool(result) and result.get("status") == "ok"


def _debug(board: Board, options: Options) -> None:
    """Every job, one after another, in this process."""
    import submitit

    executor = submitit.DebugExecutor(folder=board.folder / "jobs")
    groups, cells = ([u for u in board.units() if u.startswith(kind)] for kind in ("scores-", "cell-"))
    for job in [(group,) for group in groups] + bundles(board, cells, options.cells_per_job):
        executor.submit(Job(str(board.folder), *job)).result()


def follow(board: Board, progress: Progress, jobs: list) -> None:
    """Show cells as they end, until all have; Ctrl-C leaves a cluster's jobs alone and ends processes."""
    told: set[str] = set()
    try:
        while True:
            ended = bool(jobs) and all(job.done() for job in jobs)
            cells = [p for p in units(board, ended) if p.name.startswith("cell-")]
            for unit in cells:
                if unit.state in ("done", "failed") and unit.name not in told:
                    told.add(unit.name)
                    progress.cell_done(f"{'FAILED  ' if unit.state == 'failed' else ''}{unit.label}"
                                       + (f": {unit.reason}" if unit.reason else ""))
            running = [p for p in cells if p.state == "running"]
            if running:
                progress.update(f"{len(running)} running, first: {running[0].reason}", 0, 1)
            if len(told) == len(cells) and (ended or not jobs):
                return
            time.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel()
        raise
    finally:
        board.close()


def score_groups(cases: Cases) -> tuple[list[list[int]], list[set[int]]]:
    """Groups of cells by number, one cell for each different scores, grouped by what they share; and all cells that
    read each group's scores.

    Scores that share one backward pass, one pass over prompts or one walk for Hessians are one group, so that no two
    jobs wait for each other; every other scorer's scores are a group of their own.
    Cells of one group differ in budget, allocator or quantizer only.
    """
    groups: dict[str, list[int]] = {}
    readers: dict[str, set[int]] = {}
    seen: set[str] = set()
    for index, case in enumerate(cases):
        if not case.method.scorer:
            continue
        key, shared = scores_key(case)[0], next(iter(upstream(case).values()))  # a pass's key, or the scores' own
        readers.setdefault(shared, set()).add(index)
        if key not in seen:
            seen.add(key)
            groups.setdefault(shared, []).append(index)
    return list(groups.values()), [readers[shared] for shared in groups]
