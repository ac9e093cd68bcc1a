"""The content-addressed store: ``<root>/<digest>/`` holds a stage's files and a ``meta.json``.

An entry is written into a temporary folder, flushed, and renamed into place, so it is whole or absent.
``meta.json`` carries the sha256 of every file; an entry that does not match is put aside as
``.damaged-<digest>`` and computed again.  Work on one key is serialised by a lock (core/locks.py) that needs
no flock; should two processes make one entry all the same, the first one in place stays.
``journal/`` has one file a process: a line for every entry, and piece of one, that it finished.
"""

import errno
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from core.digest import canonical_json, digest, file_sha256, write_json
from core.errors import UserError, storage_error
from core.locks import hold, take
from harness.partial import Partial

log = logging.getLogger(__name__)
OLD_S = 24 * 3600.0  # a temporary folder this old belongs to nobody any more
ABANDONED_S = 30 * 24 * 3600.0  # pieces of a stage that nobody has gone on with for so long


class Store:
    """Entries by digest under one folder."""

    def __init__(self, root: Path):
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache folder {str(root)!r} cannot be made ({error.strerror}); choose another with --cache_dir") from None

    def path(self, key: str) -> Path:
        return self.root / key

    def get(self, key: str) -> Path | None:
        """Return the entry's folder if it is there and whole, else None."""
        folder = self.path(key)
        if not folder.is_dir():
            return None
        try:
            meta = json.loads((folder / "meta.json").read_text())
            bad = [name for name, sha in meta["files"].items() if file_sha256(folder / name) != sha]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            bad = [str(error)]
        if not bad:
            return folder
        self._quarantine(key, bad[0])
        return None

    def _quarantine(self, key: str, why: str) -> None:
        """Put a damaged entry aside; another process may have done so just before."""
        aside = self.root / f".damaged-{key}"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            os.replace(self.path(key), aside)
        except FileNotFoundError:
            return
        log.warning("cache entry %s is damaged (%s); put aside as %s and computed again", key, why, aside.name)

    def put(self, key: str, identity: dict, provenance: dict, write) -> Path:
        """Let ``write(folder)`` make the files, add meta.json, move the folder into place; StorageError if the disk refuses."""
        temp = None
        try:
            temp = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
            write(temp)
            files = {f.relative_to(temp).as_posix(): file_sha256(f) for f in sorted(temp.rglob("*")) if f.is_file()}
            for name in files:
                _flush(temp / name)
            stamp = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(temp / "meta.json", {"digest": key, "identity": identity, "provenance": provenance, "files": files, "time": stamp})
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
        except OSError as error:  # a folder that is not empty cannot be replaced: another process was first, with the same content
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            _flush(self.root)

    def _note(self, stage: str, key: str) -> None:
        """One line for what was just finished, in a file of this process's own: who did what, and a proof that nothing was done twice."""
        folder = self.root / "journal"
        folder.mkdir(exist_ok=True)
        line = canonical_json({"key": key, "stage": stage, "time": time.time()})
        with open(folder / f"{socket.gethostname()}-{os.getpid()}.log", "a") as out:
            out.write(line + "\n")

    @contextmanager
    def lock(self, key: str, what: str):
        """Hold the key: a second process that wants the same entry waits, for ``what`` as it says, and then finds it."""
        with hold(self._lock_path(key), f"the {what} {key}"):
            yield

    def take(self, key: str):
        """The lock of a key, held, if nobody has it, else None; the caller releases it."""
        return take(self._lock_path(key))

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
        """What is finished of an entry in the making; survives a kill."""
        return Partial(self.root / ".partial" / key, lambda name: self._note("piece", f"{key}/{name}"))

    def sweep(self) -> None:
        """Remove temporary folders that killed processes left long ago, and the pieces of stages that were given up."""
        for pattern, old in ((".tmp-*", OLD_S), (".partial/*", ABANDONED_S)):
            for folder in self.root.glob(pattern):
                try:
                    if time.time() - folder.stat().st_mtime > old:
                        shutil.rmtree(folder, ignore_errors=True)
                except FileNotFoundError:  # its owner has just finished
                    continue


def _flush(path: Path) -> None:
    """Make a file's bytes or a folder's names durable before anything relies on them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def stage_key(stage: str, version: int, **upstream) -> tuple[str, dict]:
    """Digest and identity of a stage's output: stage, its version, and exactly what it reads."""
    identity = {"stage": stage, "version": version, **upstream}
    return digest(identity), identity
