"""Scores of single weights as they are stored: the best of all linears together, and a sample of each linear.

A plan keeps a few weights in a hundred, and of the others it only has to know that they rank lower.  So one weight in
SHARE is stored with its score, a sixth of the bytes of all; whoever needs more has the scorer run again
(harness/stages/scores.py).
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from core.digest import digest
from quantization.allocators.ranking import best_masks

# between two levels that are 1 bit apart no more weights fit, were they kept at 8 bits each and their index free
SHARE = 8
BYTES = 1 / 8 + 4 / SHARE  # stored, of a weight
SAMPLE = 64  # scores of each linear that a result carries
FILE = "best.safetensors"


def write_best(folder: Path, values: Mapping[str, np.ndarray]) -> None:
    """Store the best of float32 ``values`` [out, in] by linear; of equal ones those that a plan takes first."""
    names = sorted(values)  # as a model's linears stand, for positions tell equal scores apart
    parts = [values[fqn].ravel() for fqn in names]
    stored, k = {}, -(-sum(map(len, parts)) // SHARE)
    for fqn, flat, best in zip(names, parts, best_masks(parts, k), strict=True):
        stored |= {f"{fqn}|best": np.packbits(best), f"{fqn}|scores": flat[best],
                   f"{fqn}|sample": flat[_drawn(fqn, len(flat))]}
    save_file(stored, folder / FILE)


class BestScores(Mapping):
    """The stored scores by linear, float32 [out, in]; those that are not stored are −∞, below all that are.

    A linear's are made whenever they are asked for, so that all together take no more memory than their file.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, int]]):
        with safe_open(path, "pt") as file:
            self._parts = {name: file.get_tensor(name) for name in file.keys()}
        self._shapes = {fqn: shapes[fqn] for fqn in sorted(name.rpartition("|")[0] for name in self._parts
                                                           if name.endswith("|best"))}

    def __getitem__(self, fqn: str) -> torch.Tensor:
        rows, columns = self._shapes[fqn]
        best = np.unpackbits(self._parts[f"{fqn}|best"].numpy(), count=rows * columns).astype(bool)
        values = torch.full((rows * columns,), -torch.inf)
        values[torch.from_numpy(best)] = self._parts[f"{fqn}|scores"]
        return values.view(rows, columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def sample(self, fqn: str) -> tuple[np.ndarray, torch.Tensor]:
        """As :func:`sample_of`, among the best or not."""
        return _drawn(fqn, math.prod(self._shapes[fqn])), self._parts[f"{fqn}|sample"]


def sample_of(values: Mapping[str, torch.Tensor], fqn: str) -> tuple[np.ndarray, torch.Tensor]:
    """(positions, scores there) of SAMPLE scores of a linear."""
    if isinstance(values, BestScores):
        return values.sample(fqn)
    flat = values[fqn].flatten()
    positions = _drawn(fqn, len(flat))
    return positions, flat[torch.from_numpy(positions)]


def _drawn(fqn: str, size: int) -> np.ndarray:
    """Positions among a linear's ``size`` scores, drawn by the linear's name."""
    if size == 1:
        return np.zeros(1, np.int64)
    return np.random.default_rng(int(digest(fqn)[:8], 16)).integers(0, size, min(SAMPLE, size))
