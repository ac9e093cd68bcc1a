"""Python's side of lab.sh: starts a cluster, asks it, and breaks its jobs."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SCRIPT = Path(__file__).with_name("lab.sh")
CANNOT = 3  # lab.sh's exit status where no cluster can be had


class NoLab(Exception):
    """This machine cannot have a cluster; the text is the script's line."""


class Lab:
    """A cluster in its own folder. Its jobs are those of one user, root, and go with it."""

    def __init__(self, folder: Path, *options: str, env: dict[str, str] | None = None):
        self.folder, self.options, self.conf = folder, options, folder / "slurm.conf"
        self.env = {**os.environ, "LAB": str(folder), "SLURM_CONF": str(self.conf), **(env or {})}

    def script(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run([SCRIPT, *words], env=self.env, capture_output=True, text=True)

    def start(self) -> None:
        done = self.script("start", *self.options)
        if done.returncode == CANNOT:
            shutil.rmtree(self.folder, ignore_errors=True)  # often not even made
            raise NoLab(done.stderr.strip())
        if done.returncode:
            raise RuntimeError(f"lab.sh start failed: {done.stderr}")

    def stop(self) -> None:
        done = self.script("stop")
        if done.returncode:
            raise RuntimeError(f"lab.sh stop failed: {done.stderr}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str) -> str:
        """What one of SLURM's commands prints; its own complaint is in the error if it fails."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return done.stdout

    def scontrol(self, *words: str) -> str:
        return self.run("scontrol", *words)

    def sbatch(self, command: str, *options: str) -> str:
        """Submits a shell command; returns the job's id."""
        return self.run("sbatch", "--parsable", "-o", "/dev/null", *options, "--wrap", command).strip()

    def squeue(self, column: str = "%T") -> dict[str, str]:
        """Id (123 or 123_4) -> state, or another of squeue's columns, of every job, finished ones as well."""
        lines = self.run("squeue", "-a", "-r", "-t", "all", "-h", "-o", f"%i|{column}").splitlines()
        return dict(line.split("|", 1) for line in lines)

    def restarts(self, job: str) -> int:
        words = dict(word.split("=", 1) for word in self.scontrol("-o", "show", "job", job).split() if "=" in word)
        return int(words["Restarts"])

    def idle_nodes(self) -> set[str]:
        return set(self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split())

    def job_processes(self, job: str) -> list[int]:
        """Process ids of a job (of all elements if it is an array): the batch script, srun and the tasks, not SLURM's
        own.
        """
        raw = set(self.run("squeue", "-a", "-r", "-t", "all", "-h", "-o", "%A", "-j", job).split())
        marks = {f"SLURM_CONF={self.conf}".encode()}, {f"SLURM_JOB_ID={one}".encode() for one in raw}
        return [pid for pid, variables in _environments() if all(mark & variables for mark in marks)]

    def kill_job_processes(self, job: str) -> list[int]:
        """SIGKILL to the running job's processes, as the kernel's out-of-memory killer sends it; SLURM only sees them
        gone.
        """
        killed = self.wait_until(lambda: self.job_processes(job), 20, f"job {job} to have processes")
        for pid in killed:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # srun ends by itself when its task is gone
                continue
        return killed

    def wait_until(self, predicate: Callable, seconds: float, what: str):
        """The predicate's first true value; an error that says what was waited for, and the jobs' states, if none
        comes.
        """
        end = time.monotonic() + seconds
        while not (value := predicate()):
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds} s for {what}; jobs: {self.squeue('%T %r')}; idle nodes: "
                                   f"{self.idle_nodes()}")
            time.sleep(0.1)
        return value

    def clear(self) -> None:
        """Cancels what still runs and waits for the nodes."""
        self.run("scancel", "-u", "root", "-t", "PENDING")
        self.run("scancel", "-u", "root", "-f", "-s", "KILL")
        self.wait_until(lambda: self.idle_nodes() == {"n1", "n2"}, 30, "both nodes to be idle")


def _environments() -> Iterator[tuple[int, set[bytes]]]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            yield int(path.parent.name), set(path.read_bytes().split(b"\0"))
        except OSError:  # ended between the listing and the reading
            continue
