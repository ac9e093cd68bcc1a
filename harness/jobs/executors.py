"""Who runs a grid: this process, several on this machine, or a SLURM cluster; all but the first through submitit.

    local     this process, cell by cell
    process   --max_parallel workers on this machine, which claim groups of scores first, then cells
    slurm     two job arrays: one job a group of scores and a cell that needs none; then, after these, one a cell, or
              several cells of one model (--cells_per_job)
    debug     the units of a slurm run one by one in this process, under submitit's DebugExecutor (pdb on an error)

The second array waits with ``afterany``: scores that failed make their own cells fail, with the reason, and no others.
Job states are read from squeue (with sacct behind it), never from submitit's result pickles: without accounting those
hang for ever when a job is killed, and on a reset cluster they may be another job's.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

from core.errors import UserError
from core.method_names import resolve_method
from harness.jobs.board import EVERYTHING, Board, unit_name
from harness.jobs.options import Options
from harness.jobs.queue import cancel
from harness.jobs.worker import Job

REPO = Path(__file__).resolve().parents[2]

FOREVER_MIN = 60 * 24 * 365


def environment() -> dict[str, str]:
    """What a worker needs of the environment: this project to import, and torch's threads asleep when idle."""
    before = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = os.pathsep.join(dict.fromkeys([str(REPO), *before]))
    return {"PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}


def visible_gpus(count: int) -> list[int]:
    """The GPUs that this process may use, as numbers of the whole machine: workers get them one each, in turn."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None or not count:
        return list(range(count))
    if not re.fullmatch(r"\d+(,\d+)*", asked):
        raise UserError(f"CUDA_VISIBLE_DEVICES is {asked!r}; --executor process shares out GPUs by number, such as 0,1")
    return [int(number) for number in asked.split(",")][:count]


def submit_processes(board: Board, options: Options):
    """Start the workers on this machine; returns submitit's jobs."""
    import submitit
    import torch

    gpus, jobs, before = visible_gpus(torch.cuda.device_count()), [], dict(os.environ)
    os.environ.update(environment() | {"OMP_NUM_THREADS": str(options.threads)})
    try:
        for number in range(options.workers):
            executor = submitit.LocalExecutor(folder=board.folder / "jobs")
            executor.update_parameters(timeout_min=FOREVER_MIN, gpus_per_node=min(1, len(gpus)),
                                       visible_gpus=(gpus[number % len(gpus)],) if gpus else ())
            jobs.append(executor.submit(Job(str(board.folder), EVERYTHING)))
    finally:
        os.environ.clear()
        os.environ.update(before)
    board.write_jobs({f"worker-{i}": job.job_id for i, job in enumerate(jobs)})
    return jobs


def submit_slurm(board: Board, options: Options, skip: set[int], readers: list[set[int]]) -> dict[str, str]:
    """Hand in both arrays but for cells to skip and scores that only these read; returns unit -> job number."""
    groups = [unit_name("scores", i) for i, cells in enumerate(readers) if cells - skip]
    cells = {unit_name("cell", i): bool(resolve_method(cell["method"]).scorer)
             for i, cell in enumerate(board.run["cells"]) if i not in skip}
    alone = bundles(board, [c for c, scored in cells.items() if not scored], options.cells_per_job)
    first = _array(board, options, [(group,) for group in groups] + alone, what="scores")
    board.write_jobs(first)  # should the second submission fail, the first can be cancelled
    after = ":".join(dict.fromkeys(number.split("_")[0] for number in first.values()))
    try:
        scored = bundles(board, [c for c, scored in cells.items() if scored], options.cells_per_job)
        jobs = first | _array(board, options, scored, what="cells", dependency=f"afterany:{after}" if after else None)
    except UserError:
        cancel(board)
        raise
    board.write_jobs(jobs)
    return jobs


def bundles(board: Board, units: list[str], size: int | None) -> list[tuple[str, ...]]:
    """The units of each job: cells of one model, at most ``size`` (1 if None), in running order."""
    size = size or 1
    of_model: dict[str, list[str]] = {}
    for unit in units:
        of_model.setdefault(board.run["cells"][int(unit.rpartition("-")[2])]["model"], []).append(unit)
    return [tuple(own[start:start + size]) for own in of_model.values() for start in range(0, len(own), size)]


def _array(board: Board, options: Options, jobs_units: list[tuple[str, ...]], *, what: str,
           dependency: str | None = None) -> dict[str, str]:
    """One job array, a job a bundle of units; returns unit -> job number."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if not jobs_units:
        return {}
    try:
        executor = submitit.SlurmExecutor(folder=board.folder / "jobs",
                                          max_num_timeout=20 if options.max_requeues is None else options.max_requeues)
        executor.update_parameters(**_parameters(board, options, what, dependency))
        with executor.batch():
            jobs = [executor.submit(Job(str(board.folder), *units)) for units in jobs_units]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, RuntimeError) as error:
        raise UserError(f"SLURM did not take the {what}: {_reason(error)}; "
                        "compare what sinfo shows with --partition, --time, --mem, --cpus_per_task, --gpus_per_task, "
                        "--sbatch") from None
    return {unit: job.job_id for units, job in zip(jobs_units, jobs, strict=True) for unit in units}


def _parameters(board: Board, options: Options, what: str, dependency: str | None) -> dict:
    """submitit's names for what is asked of sbatch."""
    extra = {"requeue": True}
    for pair in options.sbatch:
        key, has, value = pair.lstrip("-").partition("=")
        extra[key] = value if has else True
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment().items()]
    asked = {"job_name": f"taq-{what}-{board.id}", "partition": options.partition, "time": options.minutes, "nodes": 1,
             "cpus_per_task": options.threads, "gpus_per_node": options.gpus or None,
             "array_parallelism": options.workers,
             "mem": f"{options.mem_bytes // 2**20}M" if options.mem else None, "dependency": dependency,
             "setup": [*exports, *options.setup],
             # a job is told of its end early enough to be queued again, but not before it has begun
             "signal_delay_s": min(90, options.minutes * 15), "additional_parameters": extra}
    return {k: v for k, v in asked.items() if v is not None}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    match = re.search(r"sbatch: error: (.*?)(?:sbatch: error|$)", text)
    return (match[1] if match else text).strip().rstrip(".") or type(error).__name__
