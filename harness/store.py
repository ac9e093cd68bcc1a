"""The content-addressed store: ``<root>/<digest>/`` holds a stage's files and a ``meta.json``.

An entry is written into a temporary folder and renamed into place, so it is whole or absent.
``meta.json`` carries the sha256 of every file; an entry that does not match is put aside as
``.damaged-<digest>`` and computed again.  Work on one key is serialised by a lock file.
"""

import json
import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from core.digest import digest, file_sha256, write_json
from core.errors import UserError
from core.locks import hold
from harness.partial import Partial

log = logging.getLogger(__name__)


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
        except (OSError, ValueError, KeyError) as error:
            bad = [str(error)]
        if not bad:
            return folder
        aside = self.root / f".damaged-{key}"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        log.warning("cache entry %s is damaged (%s); put aside as %s and computed again", key, bad[0], aside.name)
        return None

    def put(self, key: str, identity: dict, provenance: dict, write) -> Path:
        """Let ``write(folder)`` make the files, add meta.json, move the folder into place."""
        temp = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
        try:
            write(temp)
            files = {f.relative_to(temp).as_posix(): file_sha256(f) for f in sorted(temp.rglob("*")) if f.is_file()}
            stamp = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(temp / "meta.json", {"digest": key, "identity": identity, "provenance": provenance, "files": files, "time": stamp})
            os.chmod(temp, 0o755)
            if not self.path(key).exists():
                os.replace(temp, self.path(key))
        finally:
            shutil.rmtree(temp, ignore_errors=True)
        return self.path(key)

    @contextmanager
    def lock(self, key: str):
        """Hold the key: a second process that wants the same entry waits and then finds it."""
        folder = self.root / ".locks"
        folder.mkdir(exist_ok=True)
        with hold(folder / key):
            yield

    def partial(self, key: str) -> Partial:
        """What is finished of an entry in the making; survives a kill."""
        return Partial(self.root / ".partial" / key)


def stage_key(stage: str, version: int, **upstream) -> tuple[str, dict]:
    """Digest and identity of a stage's output: stage, its version, and exactly what it reads."""
    identity = {"stage": stage, "version": version, **upstream}
    return digest(identity), identity
