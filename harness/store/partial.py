"""What an unfinished stage has made so far, on disk through a kill: ``.partial/<digest>/<name>``.

Every file begins with a line that holds the sha256 of the rest, so that a truncated or flipped one is noticed, thrown
away and made again, and the seconds that it took.  Files are written whole (temporary file, fsync, rename).  The folder
goes when the stage is stored.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from core.digest import atomic_write, canonical_json

log = logging.getLogger(__name__)
TRIES = 3  # another process may remove the folder between its making and the file's renaming; not three times in a row


class Partial:
    """The files of one unfinished stage, by name."""

    def __init__(self, folder: Path, note: Callable[[str], None] = lambda name: None):
        self.folder, self.note = Path(folder), note  # note: told of every file that was written
        self.spent = 0.0  # seconds that earlier processes spent on the files that were loaded
        self._counted: set[str] = set()  # names whose seconds are this process's own, or are in ``spent``
        self._since = time.perf_counter()

    def save(self, name: str, *pieces: bytes) -> None:
        """Write a file; it is whole or absent whatever happens.  Pieces of gigabytes are not put together first."""
        seconds, sha = time.perf_counter() - self._since, hashlib.sha256()
        for piece in pieces:
            sha.update(piece)
        head = f"{sha.hexdigest()} {seconds:.6f}\n".encode()
        for left in reversed(range(TRIES)):
            try:
                atomic_write(self.folder / name, head, *pieces)
                break
            except FileNotFoundError:
                if not left:
                    raise
        self._counted.add(name)
        self._since = time.perf_counter()
        self.note(name)

    def load(self, name: str) -> bytes | None:
        """What a file holds, or None if it is not there or not what was written."""
        try:
            head, _, data = (self.folder / name).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        sha, *seconds = head.split() or [b""]
        if sha != hashlib.sha256(data).hexdigest().encode():
            log.warning("%s is damaged; thrown away and made again", self.folder / name)
            (self.folder / name).unlink(missing_ok=True)
            return None
        if name not in self._counted:
            self._counted.add(name)
            self.spent += sum(map(float, seconds))
        self._since = time.perf_counter()
        return data

    def has(self, name: str) -> bool:
        """Whether a file lies there, whole or not."""
        return (self.folder / name).exists()

    def save_json(self, name: str, value) -> None:
        self.save(name, json.dumps(value).encode())  # NaN included: it is the reader's to refuse

    def load_json(self, name: str):
        """Plain data, or None."""
        data = self.load(name)
        return None if data is None else json.loads(data)

    def save_tensors(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        self.save(name, save({key: t.detach().cpu().contiguous() for key, t in tensors.items()}))

    def load_tensors(self, name: str) -> dict[str, torch.Tensor] | None:
        """Tensors on the CPU, or None."""
        data = self.load(name)
        return None if data is None else load(data)

    def save_record(self, name: str, value, tensors: dict[str, torch.Tensor]) -> None:
        """Plain data and tensors that only count together."""
        body = save({key: t.detach().cpu().contiguous() for key, t in tensors.items()})
        self.save(name, canonical_json(value).encode() + b"\n", body)

    def load_record(self, name: str) -> tuple[Any, dict[str, torch.Tensor]] | None:
        """What :meth:`save_record` wrote, or None."""
        data = self.load(name)
        if data is None:
            return None
        head, _, rest = data.partition(b"\n")
        return json.loads(head), load(rest)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """``make()``'s plain data; read back, so that the first run and a resumed one see the same."""
        data = self.load(name)
        if data is None:
            self.save_json(name, make())
            data = self.load(name)
        return json.loads(data)

    def clear(self) -> None:
        """Throw everything away: it is stored elsewhere now, or of no use."""
        shutil.rmtree(self.folder, ignore_errors=True)
