"""What a cluster's queue says of a run's jobs, and how they are stopped."""

import os
import signal
import socket
import subprocess

from core.errors import UserError
from harness.jobs.board import LAUNCHER, Board, process_number

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL",
         "DEADLINE", "REVOKED", "UNKNOWN"}


def job_states(numbers: list[str], run: str) -> dict[str, tuple[str, str]]:
    """number -> (state, reason) of a run's SLURM jobs, from squeue and, for those it has forgotten, from sacct; unknown
    ones are absent.

    A cluster that was reset gives its numbers out again, so a job counts only if it bears the run's name.
    """
    bases = ",".join(dict.fromkeys(n.split("_")[0] for n in numbers))
    if not bases:
        return {}
    states = _table(run, "squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%r|%j", "-j", bases)
    if set(numbers) - set(states):
        states = _table(run, "sacct", "-n", "-X", "-P", "-o", "JobID,State,Reason,JobName", "-j", bases) | states
    return {n: states[n] for n in numbers if n in states}


def _table(run: str, *command: str) -> dict[str, tuple[str, str]]:
    """number -> (state, reason) out of a command's lines, of the run's jobs only."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} does not answer here ({type(error).__name__}); ask on a machine of the jobs' "
                        "cluster") from None
    # a number that the controller has forgotten is an answer, and a cluster need not have accounting
    if ran.returncode and command[0] == "squeue" and "Invalid job id" not in ran.stderr:
        raise UserError(f"squeue fails here ({ran.stderr.strip().splitlines()[-1:]}); ask on a machine of the jobs' "
                        "cluster")
    rows = (line.split("|") for line in ran.stdout.splitlines() if line.count("|") == 3)
    return {number: (state.split()[0].rstrip("+"), "" if reason in ("None", "") else reason)
            for number, state, reason, name in rows
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
            raise UserError(f"scancel did not stop run {board.id} ({' '.join(ran.stderr.split())}); it may be another "
                            "user's")
    return alive


def _interrupt(board: Board) -> list[str]:
    """Send Ctrl-C to who launched a run on this machine, which ends its workers, or to the workers it left behind."""
    if board.run["host"] != socket.gethostname():
        raise UserError(f"run {board.id} is on {board.run['host']}, this is {socket.gethostname()}; cancel it there")
    alive = [name for name in board.workers() if board.alive(name)]
    first = [name for name in alive if name.endswith(f"-{LAUNCHER}")] or alive
    for name in first:
        try:
            os.kill(process_number(name), signal.SIGINT)
        except ProcessLookupError:  # it has just ended
            continue
    return first
