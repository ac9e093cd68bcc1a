"""The pieces of the long stages: solved blocks, gradient sums so far, and what a scorer asks to be kept.

All lie under ``.partial/<digest of the stage>`` (harness/store/partial.py) and are gone once the stage is stored; absent or
damaged ones are made again.  Solved blocks stay until the samples that were asked of them are stored.  A stage's seconds
count those of the pieces that an earlier process made.
"""

import time
from dataclasses import fields, replace

import numpy as np
import torch

from core.types import LayerPlan, Stored
from harness.store.partial import Partial
from quantization.apply import Keeper

ARRAYS = ("group_bits", "keep")  # of a LayerPlan


class SolvedBlocks(Keeper):
    """One record a block: ŵ in the model's dtype, the plan as it came out and the notes of every linear."""

    def __init__(self, kept: Partial):
        self.kept, self.spent, self.since = kept, 0.0, time.perf_counter()

    def load(self, block: int) -> dict[str, Stored] | None:
        found = self.kept.load_record(f"block-{block:05d}")
        if found is None:
            return None
        head, tensors = found
        self.spent += head["seconds"]
        self.since = time.perf_counter()
        return {fqn: _stored(fqn, plain, tensors) for fqn, plain in head["linears"].items()}

    def save(self, block: int, found: dict[str, Stored]) -> None:
        tensors, plain = {}, {}
        for fqn, one in found.items():
            tensors[fqn] = one.values
            tensors |= {f"{fqn}|{name}": torch.from_numpy(array) for name, array in _arrays(one.layer).items()}
            plain[fqn] = {"layer": {f.name: getattr(one.layer, f.name) for f in fields(LayerPlan) if f.name not in ARRAYS}, "notes": one.notes}
        self.kept.save_record(f"block-{block:05d}", {"linears": plain, "seconds": time.perf_counter() - self.since}, tensors)
        self.since = time.perf_counter()

    def has(self, block: int) -> bool:
        """Whether a block's record lies there, whole or not."""
        return (self.kept.folder / f"block-{block:05d}").exists()


def _arrays(layer: LayerPlan) -> dict[str, np.ndarray]:
    """The arrays of a plan, the mask at one bit a weight."""
    found = {} if layer.group_bits is None else {"group_bits": np.ascontiguousarray(layer.group_bits)}
    return found if layer.keep is None else found | {"keep": np.packbits(layer.keep)}


def _stored(fqn: str, plain: dict, tensors: dict[str, torch.Tensor]) -> Stored:
    values, layer = tensors[fqn], LayerPlan(**plain["layer"])
    bits, mask = (tensors.get(f"{fqn}|{name}") for name in ARRAYS)
    if bits is not None:
        layer = replace(layer, group_bits=bits.numpy())
    if mask is not None:
        layer = replace(layer, keep=np.unpackbits(mask.numpy(), count=values.numel()).astype(bool).reshape(values.shape))
    return Stored(values, layer, {}, plain["notes"])
