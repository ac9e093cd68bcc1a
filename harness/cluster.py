"""Who runs a grid: this process, several on this machine, or a SLURM cluster; all but the first through submitit.

    local     this process, cell by cell
    process   --max_parallel workers on this machine, which claim groups of scores first, then cells
    slurm     two job arrays: one job a group of scores and a cell that needs none; then, when these have ended, one a cell
    debug     the parts of a slurm run one after another in this process, under submitit's DebugExecutor (pdb on an error)

The second array waits with ``afterany``: scores that failed make their own cells fail, with the reason, and no others.
Job states are read from squeue (with sacct behind it), never from submitit's result pickles: without accounting those
hang for ever when a job is killed, and on a reset cluster they may be another job's.
"""

import math
import os
import re
import shlex
import signal
import socket
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

from core.errors import UserError
from core.registry import resolve_method
from harness.board import EVERYTHING, LAUNCHER, Board, part_name
from harness.worker import Job

EXECUTORS = ("local", "process", "debug", "slurm")
REPO = Path(__file__).resolve().parents[1]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED", "UNKNOWN"}
FOREVER_MIN = 60 * 24 * 365


# which executors read a flag; debug takes those of slurm, to be tried before
READS = {"max_parallel": ("process", "slurm", "debug"), "cpus_per_task": ("process", "slurm", "debug"), "wait": ("slurm", "debug")}
JOBS = ("slurm", "debug")


@dataclass(frozen=True)
class Options:
    """How jobs are asked for; none of it changes a result, except that ``cpus_per_task`` are a CPU job's threads.  None = not asked."""

    executor: str = "local"
    max_parallel: int | None = None  # jobs at a time; 2 processes, or 64 jobs of an array
    partition: str | None = None
    gpus_per_task: int | None = None
    cpus_per_task: int | None = None  # 4 on a cluster, the cores shared out on one machine
    time: str | None = None  # 4 hours; a job that needs more is queued again and goes on
    mem: str | None = None
    setup: tuple[str, ...] = ()  # shell lines before the work: module load, source activate
    sbatch: tuple[str, ...] = ()  # KEY=VALUE, handed on
    max_requeues: int | None = None  # 20
    wait: bool = False

    def __post_init__(self):
        if self.executor not in EXECUTORS:
            raise UserError(f"--executor is {self.executor!r}; use one of: {', '.join(EXECUTORS)}")
        for name, least in (("max_parallel", 1), ("gpus_per_task", 0), ("cpus_per_task", 1), ("max_requeues", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}; it must be at least {least}")
        if self.minutes < 1:
            raise UserError(f"--time is {self.minutes} minutes; give at least 1")
        if self.mem is not None:
            parse_bytes(self.mem)
        for pair in self.sbatch:
            if not re.fullmatch(r"-{0,2}[a-z][a-z-]*(=.+)?", pair):
                raise UserError(f"--sbatch {pair!r} is not KEY=VALUE of sbatch, such as account=lab or qos=low")
        for field in fields(self):
            readers = READS.get(field.name, JOBS)
            if field.name != "executor" and getattr(self, field.name) not in (None, (), False) and self.executor not in readers:
                raise UserError(f"--{field.name} does nothing with --executor {self.executor}; add --executor {readers[0]} or leave it out")

    @property
    def minutes(self) -> int:
        return parse_minutes(self.time or "240")

    @property
    def mem_bytes(self) -> int | None:
        return None if self.mem is None else parse_bytes(self.mem)

    @property
    def gpus(self) -> int:
        """GPUs of one job on a cluster."""
        return self.gpus_per_task or 0

    @property
    def workers(self) -> int:
        """How many parts may run at a time."""
        return self.max_parallel or {"local": 1, "debug": 1, "process": 2, "slurm": 64}[self.executor]

    @property
    def sharing(self) -> int:
        """How many workers share this machine's memory; none of a cluster's."""
        return {"slurm": 0, "process": self.workers}.get(self.executor, 1)

    @property
    def threads(self) -> int:
        """CPU threads of one worker, or 0 where the grid's own rule holds."""
        if self.executor == "process":
            return self.cpus_per_task or max(1, cores() // self.workers)
        return (self.cpus_per_task or 4) if self.executor == "slurm" else 0


def cores() -> int:
    """CPU cores that this process may use; a job sees its own, not the node's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_minutes(text: str) -> int:
    """Minutes of a SLURM time: 90, 2:30:00, 1-12:00:00, rounded up."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?", text.strip())
    if not found:
        raise UserError(f"--time {text!r} is not a time; give minutes (90), H:MM:SS (2:30:00) or D-HH:MM:SS (1-12:00:00)")
    days, first, second, third = (int(g) if g else 0 for g in found.groups())
    if found[1] is not None:
        return math.ceil(days * 1440 + first * 60 + second + third / 60)
    if found[4] is not None:
        return math.ceil(first * 60 + second + third / 60)
    return math.ceil(first + second / 60)


def parse_bytes(text: str) -> int:
    """Bytes of a SLURM memory size: 16G, 16GB, 500M; a bare number is GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"--mem {text!r} is not a size; give GB such as 16, or 16G, 500M, 1T")
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2].upper() or "G") + 1))


def environment() -> dict[str, str]:
    """What a worker needs of the environment: this project to import, and torch's threads asleep when idle."""
    path = os.pathsep.join(dict.fromkeys([str(REPO), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
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
    """Hand in the two arrays, all but the cells to skip and the groups of scores that only these read; returns part -> job number."""
    groups = [part_name("scores", i) for i, cells in enumerate(readers) if cells - skip]
    cells = {part_name("cell", i): bool(resolve_method(cell["method"]).scorer) for i, cell in enumerate(board.run["cells"]) if i not in skip}
    first = _array(board, options, groups + [c for c, scored in cells.items() if not scored], "scores", None)
    board.write_jobs(first)  # should the second submission fail, the first can be cancelled
    after = ":".join(dict.fromkeys(number.split("_")[0] for number in first.values()))
    try:
        jobs = first | _array(board, options, [c for c, scored in cells.items() if scored], "cells", f"afterany:{after}" if after else None)
    except UserError:
        cancel(board)
        raise
    board.write_jobs(jobs)
    return jobs


def _array(board: Board, options: Options, parts: list[str], what: str, dependency: str | None) -> dict[str, str]:
    """One job array of a job a part."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if not parts:
        return {}
    try:
        executor = submitit.SlurmExecutor(folder=board.folder / "jobs", max_num_timeout=20 if options.max_requeues is None else options.max_requeues)
        executor.update_parameters(**_parameters(board, options, what, dependency))
        with executor.batch():
            jobs = [executor.submit(Job(str(board.folder), part)) for part in parts]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, RuntimeError) as error:
        raise UserError(f"SLURM did not take the {what}: {_reason(error)}; "
                        "compare what sinfo shows with --partition, --time, --mem, --cpus_per_task, --gpus_per_task, --sbatch") from None
    return {part: job.job_id for part, job in zip(parts, jobs)}


def _parameters(board: Board, options: Options, what: str, dependency: str | None) -> dict:
    """submitit's names for what is asked of sbatch."""
    extra = {"requeue": True}
    for pair in options.sbatch:
        key, has, value = pair.lstrip("-").partition("=")
        extra[key] = value if has else True
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment().items()]
    found = {"job_name": f"taq-{what}-{board.id}", "partition": options.partition, "time": options.minutes, "nodes": 1,
             "cpus_per_task": options.threads, "gpus_per_node": options.gpus or None, "array_parallelism": options.workers,
             "mem": f"{options.mem_bytes // 2**20}M" if options.mem else None, "dependency": dependency, "setup": [*exports, *options.setup],
             # a job is told of its end early enough to be queued again, but not before it has begun
             "signal_delay_s": min(90, options.minutes * 15), "additional_parameters": extra}
    return {k: v for k, v in found.items() if v is not None}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    found = re.search(r"sbatch: error: (.*?)(?:sbatch: error|$)", text)
    return (found[1] if found else text).strip().rstrip(".") or type(error).__name__


def job_states(numbers: list[str], run: str) -> dict[str, tuple[str, str]]:
    """number -> (state, reason) of a run's SLURM jobs, from squeue and, for those it has forgotten, from sacct; unknown ones are absent.

    A cluster that was reset gives its numbers out again, so a job counts only if it bears the run's name.
    """
    bases = ",".join(dict.fromkeys(n.split("_")[0] for n in numbers))
    if not bases:
        return {}
    found = _table(run, "squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%r|%j", "-j", bases)
    if set(numbers) - set(found):
        found = _table(run, "sacct", "-n", "-X", "-P", "-o", "JobID,State,Reason,JobName", "-j", bases) | found
    return {n: found[n] for n in numbers if n in found}


def _table(run: str, *command: str) -> dict[str, tuple[str, str]]:
    """number -> (state, reason) out of a command's lines, of the run's jobs only."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} does not answer here ({type(error).__name__}); ask on a machine of the jobs' cluster") from None
    # a number that the controller has forgotten is an answer, and a cluster need not have accounting
    if ran.returncode and command[0] == "squeue" and "Invalid job id" not in ran.stderr:
        raise UserError(f"squeue fails here ({ran.stderr.strip().splitlines()[-1:]}); ask on a machine of the jobs' cluster")
    rows = (line.split("|") for line in ran.stdout.splitlines() if line.count("|") == 3)
    return {number: (state.split()[0].rstrip("+"), "" if reason in ("None", "") else reason) for number, state, reason, name in rows
            if name.endswith(run)}


def cancel(board: Board) -> list[str]:
    """Stop every job of a run that has not ended; returns their numbers, or the names of the processes."""
    if board.run["executor"] != "slurm":
        return _interrupt(board)
    jobs = list(board.jobs().values())
    states = job_states(jobs, board.id)
    alive = list(dict.fromkeys(n for n in jobs if n in states and states[n][0] not in ENDED))
    if alive:
        ran = subprocess.run(["scancel", *alive], capture_output=True, text=True, timeout=60)
        if ran.returncode:
            raise UserError(f"scancel did not stop run {board.id} ({' '.join(ran.stderr.split())}); it may be another user's")
    return alive


def _interrupt(board: Board) -> list[str]:
    """Send Ctrl-C to who launched a run on this machine, which ends its workers, or to the workers it left behind."""
    if board.run["host"] != socket.gethostname():
        raise UserError(f"run {board.id} is on {board.run['host']}, this is {socket.gethostname()}; cancel it there")
    alive = [name for name in board.workers() if board.alive(name)]
    first = [name for name in alive if name.endswith(f"-{LAUNCHER}")] or alive
    for name in first:
        try:
            os.kill(int(name.split("-")[-2]), signal.SIGINT)
        except ProcessLookupError:  # it has just ended
            continue
    return first
