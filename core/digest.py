"""Identity is content: canonical JSON, digests, and writes that are whole or absent.

A digest is the first 16 hex digits of the sha256 of canonical JSON (sorted keys, no white space, no
NaN).  Tensors and arrays enter as the sha256 of (dtype, shape, little-endian bytes).
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

DIGEST_VERSION = 1  # raise it when the rule below changes; the golden digests in tests/ pin it


def _plain(value):
    """Turn dataclasses, tuples, paths and numpy scalars into what JSON can say, losslessly."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) or hasattr(value, "untyped_storage"):
        return {"array": array_digest(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot digest a {type(value).__name__}; pass plain data or an array")


def canonical_json(value) -> str:
    """Return the one JSON text of ``value``: sorted keys, no white space; NaN is an error."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value) -> str:
    """Return 16 hex digits that identify ``value`` by content."""
    text = f"v{DIGEST_VERSION}:{canonical_json(value)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def array_digest(array) -> str:
    """Return the sha256 of a numpy array or torch tensor: dtype, shape and bytes all count."""
    if hasattr(array, "untyped_storage"):  # a torch tensor; bf16 has no numpy twin, so hash its raw bytes
        import torch

        tensor = array.detach().cpu().contiguous()
        head = f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"
        data = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    else:
        array = np.ascontiguousarray(array)
        head = f"{array.dtype.name}{tuple(array.shape)}"
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return hashlib.sha256(head.encode() + data).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, read in parts."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def atomic_write(path: Path, *pieces: bytes | str) -> None:
    """Write a file, one piece after the other, so that a reader sees the old bytes or the new ones, never a half.

    Temp file in the same folder, fsync, ``os.replace``.  A killed process leaves at most a
    ``.tmp-*`` file that no reader looks at.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            for piece in pieces:
                out.write(piece.encode() if isinstance(piece, str) else piece)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temp, 0o644)
        os.replace(temp, path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise


def write_json(path: Path, value) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    text = json.dumps(_plain(value), sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
    atomic_write(path, text + "\n")
