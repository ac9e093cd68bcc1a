"""How jobs are asked for: the executor's flags."""

import math
import os
import re
from dataclasses import dataclass, field, fields

from core.errors import UserError

EXECUTORS = ("local", "process", "debug", "slurm")
# executors that read a flag; debug takes those of slurm
SHARED, JOBS = ("process", "slurm", "debug"), ("slurm", "debug")


def asked(help: str, default=None, *, metavar: str | None = None, low: int | None = None, readers: tuple = JOBS,
          repeated: bool = False):
    """A flag of the executors.  repeated: given again and again, not several values at once."""
    told = {"help": help, "flag": "", "metavar": metavar, "low": low, "choices": (), "readers": readers,
            "repeated": repeated}
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class Options:
    """How jobs are asked for; no result depends on it, but for the CPU threads of a job.  None = not asked."""

    executor: str = asked(f"{', '.join(EXECUTORS)}: this process, several on this machine, jobs one by one in this "
                          "process, or job arrays on a cluster", "local", readers=EXECUTORS)
    max_parallel: int | None = asked("processes, or jobs of an array, at a time (default: 2 processes, 64 jobs)",
                                     metavar="N", low=1, readers=SHARED)
    partition: str | None = asked("SLURM partition", metavar="P")
    gpus_per_task: int | None = asked("GPUs of a job (default: 0)", metavar="N", low=0)
    cpus_per_task: int | None = asked("CPU cores of a job or process, and its threads unless --threads says otherwise "
                                      "(default: 4, or the machine's cores shared out)", metavar="N", low=1,
                                      readers=SHARED)
    time: str | None = asked("time limit of a job: minutes, H:MM:SS or D-HH:MM:SS; one that needs more is queued again "
                             "and goes on (default: 4:00:00)", metavar="T")
    mem: str | None = asked("memory of a job, such as 64G; cells that cannot fit into it are refused before anything "
                            "starts", metavar="SIZE")
    setup: tuple[str, ...] = asked("shell line before the work, such as 'module load cuda'; repeatable", (),
                                   metavar="LINE", repeated=True)
    sbatch: tuple[str, ...] = asked("more for sbatch, such as account=lab qos=low", (), metavar="KEY=VALUE")
    max_requeues: int | None = asked("how often a job that runs out of time is queued again (default: 20)", metavar="N",
                                     low=0)
    cells_per_job: int | None = asked("cells of one model that a job runs one after another, loading the model once "
                                      "(default: 1)", metavar="N", low=1)
    wait: bool = asked("stay until a cluster's jobs have ended, then print the tables; Ctrl-C leaves them running",
                       False)

    def __post_init__(self):
        if self.executor not in EXECUTORS:
            raise UserError(f"--executor is {self.executor!r}; use one of: {', '.join(EXECUTORS)}")
        for f in fields(self):
            value, low, readers = getattr(self, f.name), f.metadata["low"], f.metadata["readers"]
            if low is not None and value is not None and value < low:
                raise UserError(f"--{f.name} is {value}; it must be at least {low}")
            if value not in (None, (), False) and self.executor not in readers:
                raise UserError(f"--{f.name} does nothing with --executor {self.executor}; add --executor {readers[0]} "
                                "or leave it out")
        if self.minutes < 1:
            raise UserError(f"--time is {self.minutes} minutes; give at least 1")
        if self.mem is not None:
            parse_bytes(self.mem)
        for pair in self.sbatch:
            if not re.fullmatch(r"-{0,2}[a-z][a-z-]*(=.+)?", pair):
                raise UserError(f"--sbatch {pair!r} is not KEY=VALUE of sbatch, such as account=lab or qos=low")

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
        """How many units may run at a time."""
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
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?", text.strip())
    if not match:
        raise UserError(f"--time {text!r} is not a time; give minutes (90), H:MM:SS (2:30:00) or D-HH:MM:SS "
                        "(1-12:00:00)")
    days, first, second, third = (int(g) if g else 0 for g in match.groups())
    if match[1] is not None:
        return math.ceil(days * 1440 + first * 60 + second + third / 60)
    if match[4] is not None:
        return math.ceil(first * 60 + second + third / 60)
    return math.ceil(first + second / 60)


def parse_bytes(text: str) -> int:
    """Bytes of a SLURM memory size: 16G, 16GB, 500M; a bare number is GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise UserError(f"--mem {text!r} is not a size; give GB such as 16, or 16G, 500M, 1T")
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper() or "G") + 1))
