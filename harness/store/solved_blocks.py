"""Blocks of a model that a solver has finished, in the store through a kill (harness/store/partial.py).

They lie under ``.partial/<digest of the weights>`` and stay until the samples that were asked of them are stored.
"""

from dataclasses import fields, replace

import numpy as np
import torch

from core.types import LayerPlan, Stored
from harness.store.partial import Partial
from quantization.apply import Keeper

ARRAYS = ("group_bits", "keep")  # of a LayerPlan


class SolvedBlocks(Keeper):
    """One record a block: ŵ in the model's dtype, the plan as it came out and the notes of every linear."""

    def __init__(self, partial: Partial):
        self.partial = partial

    def load(self, block: int) -> dict[str, Stored] | None:
        record = self.partial.load_record(_name(block))
        if record is None:
            return None
        linears, tensors = record[0]["linears"], record[1]
        return {fqn: _stored(fqn, plain, tensors) for fqn, plain in linears.items()}

    def save(self, block: int, linears: dict[str, Stored]) -> None:
        tensors, plain = {}, {}
        for fqn, stored in linears.items():
            tensors[fqn] = stored.values
            tensors |= {f"{fqn}|{name}": torch.from_numpy(array) for name, array in _arrays(stored.layer).items()}
            layer = {f.name: getattr(stored.layer, f.name) for f in fields(LayerPlan) if f.name not in ARRAYS}
            plain[fqn] = {"layer": layer, "notes": stored.notes}
        self.partial.save_record(_name(block), {"linears": plain}, tensors)

    def has(self, block: int) -> bool:
        """Whether a block's record lies there, whole or not."""
        return self.partial.has(_name(block))


def _name(block: int) -> str:
    return f"block-{block:05d}"


def _arrays(layer: LayerPlan) -> dict[str, np.ndarray]:
    """The arrays of a plan, the mask at one bit a weight."""
    arrays = {} if layer.group_bits is None else {"group_bits": np.ascontiguousarray(layer.group_bits)}
    return arrays if layer.keep is None else arrays | {"keep": np.packbits(layer.keep)}


def _stored(fqn: str, plain: dict, tensors: dict[str, torch.Tensor]) -> Stored:
    values, layer = tensors[fqn], LayerPlan(**plain["layer"])
    bits, mask = (tensors.get(f"{fqn}|{name}") for name in ARRAYS)
    if bits is not None:
        layer = replace(layer, group_bits=bits.numpy())
    if mask is not None:
        keep = np.unpackbits(mask.numpy(), count=values.numel()).astype(bool).reshape(values.shape)
        layer = replace(layer, keep=keep)
    return Stored(values, layer, {}, plain["notes"])
