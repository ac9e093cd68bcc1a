"""The content-addressed store: ``<root>/<digest>/`` holds a stage's files and a ``meta.json``.

An entry is written into a temporary folder, flushed, and renamed into place, so it is whole or absent.
``meta.json`` carries the sha256 of every file; an entry that does not match is put aside as
``.damaged-<digest>`` and computed again.  Work on one key is serialised by a lock (core/locks.py) that needs
no flock; should two processes make one entry all the same, the first one in place stays.
``journal/`` has one file a process: a line for every entry, and file of an unfinished one, that it wrote.
"""

import errno
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import SoftFileLease

from core.digest import canonical_json, file_sha256, write_json
from core.errors import UserError, storage_error
from core.locks import hold, lease, take
from harness.store.entry import Content, Judged, flush, judge
from harness.store.partial import Partial

log = logging.getLogger(__name__)
OLD_S = 24 * 3600.0  # a temporary folder this old belongs to nobody any more
ABANDONED_S = 30 * 24 * 3600.0  # an unfinished stage that nobody has gone on with for so long
# stages that --eval_only leaves alone
SCORED = ("gradients", "outputs", "pivots", "scores", "element_scores", "plan", "weights")


class Missing(UserError):
    """A stage is not in the store and --eval_only forbids computing it."""


class Store:
    """Entries by digest under one folder."""

    def __init__(self, root: Path, eval_only: bool = False):
        self.root, self.eval_only = Path(root), eval_only
        self._asked: dict[str, SoftFileLease] = {}  # locks that somebody else had when they were asked for
        self._nested = [0.0]  # seconds of finished stages inside each stage at work
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache folder {str(root)!r} cannot be made ({error.strerror}); choose another with "
                            "--cache_dir") from None

    def path(self, key: str) -> Path:
        return self.root / key

    def make(self, key: str, identity: dict, compute: Callable[[Partial], Content | None]) -> Path:
        """The entry of ``key``: looked up, else computed by one process while others wait, and stored.

        ``compute`` is handed the folder of the unfinished stage; it returns None if it finds that another process has
        stored the entry meanwhile.  Its seconds, without those of stages made inside it and with those of processes
        that were killed at it, are in the entry's provenance.  Raises Missing where --eval_only forbids the stage.
        """
        if (entry := self.get(key)) is not None:  # a cache that cannot be written serves what it has
            if self.partial(key).folder.exists():  # its maker may have been killed before it removed this
                self.partial(key).clear()
            return entry
        stage = identity["stage"]
        self.allow(stage, key)
        with self.lock(key, stage):
            partial = self.partial(key)
            entry = self.get(key)
            if entry is None:
                with self.clock() as clock:
                    content = compute(partial)
                entry = self.get(key)  # another process may have stored it, if this one lost its lease
                if entry is None and content is not None:
                    facts = {"seconds": clock.seconds + partial.spent} | content.provenance
                    entry = self.put(key, identity, facts, content.write)
            if entry is None:
                raise RuntimeError(f"a file of the unfinished {stage} {key} was damaged while it was in use; run the "
                                   "same command again")
            partial.clear()
        return entry

    def allow(self, stage: str, key: str) -> None:
        """Raise Missing where --eval_only forbids a stage."""
        if self.eval_only and stage in SCORED:
            raise Missing(f"--eval_only: the {stage} of this cell ({key}) {'is' if stage == 'plan' else 'are'} not in "
                          f"{self.root}; run once without --eval_only")

    @contextmanager
    def clock(self) -> Iterator["Clock"]:
        """Seconds of a stage without those of the stages inside it; known when the block ends."""
        clock, start = Clock(), time.perf_counter()
        self._nested.append(0.0)
        try:
            yield clock
        finally:
            whole = time.perf_counter() - start
            clock.seconds = whole - self._nested.pop()
            self._nested[-1] += whole

    def seconds(self, key: str) -> float:
        """What making an entry took; 0 where nobody wrote it down."""
        return self.meta(key)["provenance"].get("seconds", 0.0)

    def meta(self, key: str) -> dict:
        return json.loads((self.path(key) / "meta.json").read_text())

    def get(self, key: str) -> Path | None:
        """The entry's folder if it is there and whole, else None; StorageError if it is unreadable."""
        while True:
            judged = judge(self.path(key))
            if judged.state == "whole":
                return self.path(key)
            if judged.state == "absent" or self._quarantine(key, judged):
                return None

    def has(self, key: str) -> bool:
        """Whether an entry is there; who uses it reads its checksums, which takes minutes for large scores."""
        return (self.path(key) / "meta.json").is_file()

    def _quarantine(self, key: str, judged: Judged) -> bool:
        """Put a damaged entry aside; False if it is no longer the one that was judged.

        No lock is held here: another process may have put the damaged entry aside, and a whole one in its place,
        meanwhile.
        """
        aside = self.root / f".damaged-{key}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True) if aside.is_file() else None
        if judge(self.path(key)) != judged:
            return False
        try:
            os.replace(self.path(key), aside)
        except FileNotFoundError:  # another process did so just before
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # so did another one, and the entry is there again
                return False
            raise storage_error(error, self.path(key)) or error from error
        log.warning("cache entry %s is damaged (%s); put aside as %s and computed again", key, judged.why, aside.name)
        return True

    def put(self, key: str, identity: dict, provenance: dict, write: Callable[[Path], None]) -> Path:
        """Let ``write(folder)`` make the files, then move the folder into place; StorageError if the disk refuses."""
        temp = None
        try:
            temp = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
            write(temp)
            files = {f.relative_to(temp).as_posix(): file_sha256(f) for f in sorted(temp.rglob("*")) if f.is_file()}
            for name in files:
                flush(temp / name)
            stamp = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(temp / "meta.json", {"digest": key, "identity": identity, "provenance": provenance,
                                            "files": files, "time": stamp})
            os.chmod(temp, 0o755)
            self._move_in(temp, key)
            self._note(identity["stage"], key)
        except Exception as error:
            stop = storage_error(error, self.root)
            if stop:
                raise stop from error
            raise
        finally:
            if temp is not None:
                shutil.rmtree(temp, ignore_errors=True)
        return self.path(key)

    def _move_in(self, temp: Path, key: str) -> None:
        try:
            os.replace(temp, self.path(key))
        # a folder that is not empty cannot be replaced: another process was first, with the same content
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            flush(self.root)

    def _note(self, stage: str, key: str) -> None:
        """One line for what was just finished, in this process's own file: a proof that nothing was done twice."""
        folder = self.root / "journal"
        folder.mkdir(exist_ok=True)
        line = canonical_json({"key": key, "stage": stage, "time": time.time()})
        with open(folder / f"{socket.gethostname()}-{os.getpid()}.log", "a") as journal:
            journal.write(line + "\n")

    @contextmanager
    def lock(self, key: str, what: str) -> Iterator[None]:
        """Hold the key: a second process that wants the same entry waits, for ``what`` as it says."""
        with hold(self._lock_path(key), f"the {what} {key}"):
            yield

    def take(self, key: str) -> SoftFileLease | None:
        """The lock of a key, held, if nobody has it, else None; the caller releases it.

        The same lease is asked each time, for it watches whether a holder on another host still lives.
        """
        asked = self._asked.setdefault(key, lease(self._lock_path(key)))
        if (held := take(self._lock_path(key), lock=asked)) is not None:
            del self._asked[key]
        return held

    def busy(self, key: str) -> bool:
        """Whether an entry is not there and somebody seems to be making it; a guess, for choosing what to do next."""
        return not self.path(key).is_dir() and (self.root / ".leases" / key).exists()

    def _lock_path(self, key: str) -> Path:
        folder = self.root / ".leases"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise storage_error(error, folder) or error from error
        return folder / key

    def partial(self, key: str) -> Partial:
        """The files of an unfinished entry; they survive a kill."""
        return Partial(self.root / ".partial" / key, lambda name: self._note("part", f"{key}/{name}"))

    def sweep(self) -> None:
        """Remove temporary folders that killed processes left long ago, and stages that were given up."""
        for pattern, old in ((".tmp-*", OLD_S), (".partial/*", ABANDONED_S)):
            for folder in self.root.glob(pattern):
                try:
                    if time.time() - folder.stat().st_mtime > old:
                        shutil.rmtree(folder, ignore_errors=True)
                except FileNotFoundError:  # its owner has just finished
                    continue


class Clock:
    """Seconds of a stage."""

    seconds = 0.0
