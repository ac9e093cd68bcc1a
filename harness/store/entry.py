"""An entry of the store: its key, what is written into it, and whether what lies there is whole."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from core.digest import digest, file_sha256
from core.errors import storage_error


@dataclass
class Content:
    """What a stage computed: ``write(folder)`` makes the entry's files."""

    write: Callable[[Path], None]
    provenance: dict = field(default_factory=dict)


class Judged(NamedTuple):
    """What a look at an entry gave; two looks at one entry are equal."""

    state: str  # whole, absent or damaged
    why: str = ""
    meta: bytes = b""


def judge(folder: Path) -> Judged:
    """Look at an entry.  One with a file gone or altered is damaged; one that cannot be read may be whole."""
    meta = b""
    try:
        if not folder.is_dir():
            return Judged("damaged", "a file in its place") if os.path.lexists(folder) else Judged("absent")
        meta = (folder / "meta.json").read_bytes()
        for name, sha in json.loads(meta)["files"].items():
            if file_sha256(folder / name) != sha:
                return Judged("damaged", name, meta)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, KeyError, AttributeError,
            TypeError) as error:
        return Judged("damaged", str(error), meta)
    except OSError as error:
        raise storage_error(error, folder, doing="read") from error
    return Judged("whole", "", meta)


def flush(path: Path) -> None:
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
