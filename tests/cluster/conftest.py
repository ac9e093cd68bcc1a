"""A real cluster for the tests in this folder: `slurm` (no accounting) and `slurm_dbd` (with sacct).

One cluster of a kind serves a whole test run, all its xdist workers together: the first to need it starts it, the last
to end stops it. A test has it alone: a second worker's test waits for the first's end, not for the first worker's end,
which never
comes while xdist holds that worker back for the second one.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.cluster.lab import Lab, NoLab

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def locks(tmp_path_factory) -> Path:
    """A folder that all workers of this run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextlib.contextmanager
def shared_lab(locks: Path, name: str, *options: str) -> Iterator[Lab]:
    """The run's cluster of that kind. Who uses it holds a shared lock, which the system lets go of even if a worker is
    killed.
    """
    # not under pytest's own folder: that is closed to the user whom the database runs as
    lab = Lab(Path(tempfile.gettempdir()) / f"slurm-lab-{RUN}-{name}", *options)
    door, started = FileLock(locks / "slurm-door.lock"), locks / f"slurm-{name}.started"
    with open(locks / f"slurm-{name}.users", "w") as users:
        with door:
            fcntl.flock(users, fcntl.LOCK_SH)
            if not started.exists():
                try:
                    lab.start()
                except NoLab as reason:
                    pytest.skip(str(reason))
                started.touch()
        try:
            yield lab
        finally:
            with door, contextlib.suppress(BlockingIOError):  # another worker uses it still, and will stop it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                started.unlink()
                lab.stop()


@contextlib.contextmanager
def alone(lab: Lab, locks: Path, monkeypatch) -> Iterator[Lab]:
    """The cluster for one test: no other test's jobs beside its own, none of its own after."""
    with FileLock(locks / "slurm-test.lock"):
        monkeypatch.setenv("SLURM_CONF", str(lab.conf))
        try:
            yield lab
        finally:
            lab.clear()


@pytest.fixture(scope="session")
def plain_lab(locks):
    with shared_lab(locks, "plain") as lab:
        yield lab


@pytest.fixture(scope="session")
def dbd_lab(locks):
    with shared_lab(locks, "dbd", "dbd") as lab:
        yield lab


@pytest.fixture
def slurm(plain_lab, locks, monkeypatch):
    """The cluster without accounting, for this test alone; SLURM_CONF is set."""
    with alone(plain_lab, locks, monkeypatch) as lab:
        yield lab


@pytest.fixture
def slurm_dbd(dbd_lab, locks, monkeypatch):
    """The cluster with accounting, for this test alone; SLURM_CONF is set. sacct follows a job by a few seconds."""
    with alone(dbd_lab, locks, monkeypatch) as lab:
        yield lab
