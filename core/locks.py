"""One worker at a time on a key, across processes and hosts, without flock (which many shared file systems lack).

A lock is a file that exists while it is held, and that its holder touches every LEASE_S / 8 seconds.  A holder
that died on this host is found by its process number and start time at once; one on another host is given up
after LEASE_S seconds without a touch, measured on the waiter's own clock.  A lease can therefore be lost by a
process that was stopped for that long, so nothing may rely on it for correctness: what is locked is written
atomically under a digest of its content, and the worst that a lost lease costs is work done twice.
"""

import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

log = logging.getLogger(__name__)
LEASE_S = 120.0  # every process on one folder must use the same number
POLL_S = 0.25  # how often a waiter looks; gentle to a file server
UNSIGNED_S = 30.0  # a lock is signed at once after it is made; one that is not by then never will be
SAY_AFTER_S = 5.0  # a waiter says what it waits for


def _lost(loss: LeaseCompromise) -> None:
    log.warning("the lock %s was lost (%s): this process stood still for over %.0f s or the file system failed; the "
                "work goes on and may be done twice, nothing is damaged", loss.lock_file, loss.reason, LEASE_S)


def lease(path: Path, seconds: float = LEASE_S) -> SoftFileLease:
    """The lock at ``path``, not yet held; its folder must exist."""
    return SoftFileLease(str(path), lease_duration=seconds, heartbeat_interval=seconds / 8, poll_interval=POLL_S,
                         on_compromise=_lost)


def idle(path: Path) -> float | None:
    """Seconds since a lock was last touched, by the file system's own clock; None if nobody has it."""
    probe = path.with_name(f".now-{secrets.token_hex(8)}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return None
    finally:
        probe.unlink(missing_ok=True)


def _unwedge(path: Path) -> None:
    """Remove a lock whose holder was killed between making the file and signing it; nobody else would ever."""
    try:
        if path.stat().st_size or (idle(path) or 0.0) < UNSIGNED_S:
            return
        aside = path.with_name(f".unsigned-{secrets.token_hex(8)}")
        path.rename(aside)
        if aside.stat().st_size:  # it was signed in this very moment: put it back, unless somebody has the lock by now
            os.link(aside, path)
        aside.unlink()
    except (FileNotFoundError, FileExistsError):  # it was released, or another waiter was first
        return


@contextmanager
def hold(path: Path, what: str, seconds: float = LEASE_S) -> Iterator[None]:
    """Hold the lock, waiting as long as a living process has it."""
    lock, start = lease(path, seconds), time.monotonic()
    while not lock.is_locked:
        try:
            lock.acquire(timeout=SAY_AFTER_S if time.monotonic() - start < SAY_AFTER_S else UNSIGNED_S)
        except Timeout:
            log.warning("waiting for %s, which another process is working on (%.0f s so far)", what,
                        time.monotonic() - start)
            _unwedge(path)
    try:
        yield
    finally:
        lock.release()


def take(path: Path, seconds: float = LEASE_S, lock: SoftFileLease | None = None) -> SoftFileLease | None:
    """The lock, held, or None if a living process has it; the caller releases it.

    Who asks again and again gives the same ``lock`` (from :func:`lease`) each time: it is what watches whether a holder
    on another host still lives.
    """
    lock = lock or lease(path, seconds)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _unwedge(path)
        return None
    return lock


def held(path: Path, seconds: float = LEASE_S) -> bool:
    """Whether a living process holds the lock: it is not free, and was touched of late by this file system's own
    clock."""
    if not path.exists():
        return False
    if (lock := take(path, seconds)) is not None:  # its owner died on this host
        lock.release()
        return False
    age = idle(path)
    return age is not None and age < 2 * seconds
