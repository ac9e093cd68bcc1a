"""What a stage in the making has finished so far, kept through a kill: ``.partial/<digest>/<name>``.

Every file begins with the sha256 of the rest, so that a truncated or flipped one is noticed, thrown away and
made again.  Files are written whole (temporary file, fsync, rename).  The folder goes when the stage is stored.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from core.digest import atomic_write, canonical_json

log = logging.getLogger(__name__)
HEAD = 65  # 64 hex digits and a line feed
TRIES = 3  # another process may remove the folder between its making and the file's renaming; not three times in a row


class Partial:
    """Finished pieces of one stage, by name."""

    def __init__(self, folder: Path, note: Callable[[str], None] = lambda name: None):
        self.folder, self.note = Path(folder), note  # note: told of every piece that was kept

    def save(self, name: str, data: bytes) -> None:
        """Keep a piece; it is whole or absent whatever happens."""
        for left in reversed(range(TRIES)):
            try:
                atomic_write(self.folder / name, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
                return self.note(name)
            except FileNotFoundError:
                if not left:
                    raise

    def load(self, name: str) -> bytes | None:
        """A piece, or None if it is not there or not what was written."""
        try:
            raw = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        if raw[:HEAD] == hashlib.sha256(raw[HEAD:]).hexdigest().encode() + b"\n":
            return raw[HEAD:]
        log.warning("%s is damaged; thrown away and made again", self.folder / name)
        (self.folder / name).unlink(missing_ok=True)
        return None

    def save_json(self, name: str, value) -> None:
        self.save(name, canonical_json(value).encode())

    def load_json(self, name: str):
        """A piece of plain data, or None."""
        data = self.load(name)
        return None if data is None else json.loads(data)

    def save_tensors(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        self.save(name, save({key: t.detach().cpu().contiguous() for key, t in tensors.items()}))

    def load_tensors(self, name: str) -> dict[str, torch.Tensor] | None:
        """A piece made of tensors, on the CPU, or None."""
        data = self.load(name)
        return None if data is None else load(data)

    def save_record(self, name: str, value, tensors: dict[str, torch.Tensor]) -> None:
        """Plain data and tensors that only count together."""
        self.save(name, canonical_json(value).encode() + b"\n" + save({key: t.detach().cpu().contiguous() for key, t in tensors.items()}))

    def load_record(self, name: str) -> tuple[Any, dict[str, torch.Tensor]] | None:
        """What :meth:`save_record` kept, or None."""
        data = self.load(name)
        if data is None:
            return None
        head, _, rest = data.partition(b"\n")
        return json.loads(head), load(rest)

    def clear(self) -> None:
        """Throw everything away: it is stored elsewhere now, or of no use."""
        shutil.rmtree(self.folder, ignore_errors=True)
