"""The pieces of the long stages: solved blocks, gradient sums so far, and what a scorer asks to be kept.

All lie under ``.partial/<digest of the stage>`` (harness/partial.py) and are gone once the stage is stored; absent or
damaged ones are made again.  Solved blocks stay until the samples that were asked of them are stored.  A stage's seconds
count those of the pieces that an earlier process made.
"""

import json
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from core.types import LayerPlan, Stored
from harness.partial import Partial
from methods._gradients import Snapshots
from quantization.apply import Keeper

ARRAYS = ("group_bits", "keep")  # of a LayerPlan
COST = 0.05  # of a pass's time that its snapshots may take
HEAD = "head"


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


class GradientSnapshots(Snapshots):
    """The sums after some documents, one file a linear in a folder named by the number of documents, and a head that names the folder.

    The head is written last and the older folder goes after it, so there is always one whole snapshot.  A folder's name
    and the digest of the pass say what is in a file, so files of two processes that died may even mix.
    """

    def __init__(self, kept: Partial, every: float):
        self.kept, self.every, self.before = kept, every, 0.0
        self.start = self.last = time.perf_counter()
        self.cost = 0.0  # seconds that the last snapshot took

    @property
    def seconds(self) -> float:
        """Spent on the sums so far, by this process and those before it."""
        return self.before + time.perf_counter() - self.start

    def resume(self, sums: dict[str, dict[str, torch.Tensor]]) -> tuple[int, list[float]]:
        """As in the head, if it has all the kinds that are wanted now."""
        head = self.kept.load_json(HEAD)
        if head is None or not all(own.keys() <= set(head["kinds"]) for own in sums.values()):
            return 0, []
        folder = self._folder(head["done"])
        for fqn, own in sums.items():
            found = folder.load_tensors(fqn)
            if found is None or not own.keys() <= found.keys():
                _clear(sums)
                return 0, []
            for kind, value in own.items():
                value.copy_(found[kind])
        self.before = head["seconds"]
        return head["done"], head["losses"]

    def after(self, done: int, losses: list[float], sums: dict[str, dict[str, torch.Tensor]]) -> None:
        """Snapshots are ``every`` seconds apart, or more where writing takes long: 16 GB of sums must not be written every minute."""
        began = time.perf_counter()
        if began - self.last < max(self.every, self.cost / COST):
            return
        folder, kinds = self._folder(done), sorted(next(iter(sums.values())))
        for fqn, own in sums.items():
            folder.save_tensors(fqn, own)
        self.kept.save_json(HEAD, {"done": done, "losses": losses, "kinds": kinds, "seconds": self.seconds})
        for other in self.kept.folder.iterdir():
            if other.is_dir() and other != folder.folder:
                Partial(other).clear()
        self.last = time.perf_counter()
        self.cost = self.last - began

    def _folder(self, done: int) -> Partial:
        return Partial(self.kept.folder / f"{done:06d}")


def _clear(sums: dict[str, dict[str, torch.Tensor]]) -> None:
    for own in sums.values():
        for value in own.values():
            value.zero_()


class KeptValues:
    """``ScoreContext.kept``: plain data by name; what is used is what is kept, so the first run and a resumed one see the same."""

    def __init__(self, kept: Partial):
        self.kept, self.spent = kept, 0.0

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        found, start = self.kept.load(name), time.perf_counter()
        if found is None:
            value = make()
            found = json.dumps({"value": value, "seconds": time.perf_counter() - start}).encode()  # NaN is for the scorer's own checks to refuse
            self.kept.save(name, found)
        else:
            self.spent += json.loads(found)["seconds"]
        return json.loads(found)["value"]
