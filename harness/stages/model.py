"""One model of the grid: its identity first, its weights only when something must be computed.

The shapes of the linears and the whole-model counts are stored under the weights' fingerprint, so that a
run whose every cell is cached never loads the model.
"""

import json
import logging
import os
from functools import cached_property

import torch

from core import demo_model
from core.architecture import find_blocks, find_linears, other_bits, uncovered
from core.digest import write_json
from core.errors import UserError
from core.model import empty_model, load_model, load_tokenizer, model_ref, pick_device, pick_dtype, resolve_model
from core.types import Budget
from harness.grid import AUTO_GROUPS, Grid
from harness.presets import BRIEF_MODELS, DEMO_MODEL
from harness.store.store import Store, stage_key
from quantization.apply import Originals
from quantization.bits import check_groups, fitting_groups

log = logging.getLogger(__name__)


def machine(device: torch.device) -> str:
    """The kind of device that did the arithmetic; part of the samples' identity."""
    if device.type == "cuda":
        return f"cuda:{torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return device.type
    amx = "+amx" if torch.cpu._is_amx_tile_supported() else ""
    return f"cpu:{torch.backends.cpu.get_cpu_capability()}{amx}"


class Session:
    """A model, its tokenizer, its linears; everything lazy."""

    def __init__(self, name: str, grid: Grid, store: Store, token: str | None, say=log.info):
        self.grid, self.store, self.token, self.say = grid, store, token, say
        self.label = name
        self.where = self._locate(name)
        self.device = pick_device(grid.device)
        self.ref = model_ref(self.where, pick_dtype(grid.dtype, self.device), token, (DEMO_MODEL, *BRIEF_MODELS))
        self.threads = grid.threads or os.cpu_count() or 1
        torch.set_num_threads(self.threads)
        self.machine = f"{machine(self.device)}/{self.threads}t" if self.device.type == "cpu" else machine(self.device)

    def _locate(self, name: str) -> str:
        if name.lower() in (DEMO_MODEL, demo_model.NAME.lower()):
            return str(demo_model.ensure_demo_model(self.store.root / "base", self.say))
        return resolve_model(name, (DEMO_MODEL, *BRIEF_MODELS))

    @cached_property
    def tokenizer(self):
        """The tokenizer alone; cheap, and needed to know what a cell is."""
        return load_tokenizer(self.where, self.ref, self.token)

    @cached_property
    def model(self):
        """The weights, loaded on first use and checked once for NaN and infinity."""
        self.say(f"Loading {self.ref.name} ({self.ref.dtype}, {self.device})")
        model = load_model(self.where, self.ref, self.device, self.token)
        key, identity = stage_key("finite", 1, model=self.ref.key)
        with self.store.lock(key, identity["stage"]):
            if self.store.get(key) is None:
                broken = [fqn for fqn, lin in find_linears(model)[0].items() if not torch.isfinite(lin.weight).all()]
                if broken:
                    raise UserError(f"weights of {broken[0]} in {self.ref.name} hold NaN or infinity ({len(broken)} linears); repair the checkpoint")
                self.store.put(key, identity, {"model": self.label}, lambda folder: write_json(folder / "finite.json", True))
        return model

    def check_weights(self) -> None:
        """Load and check the weights now, unless they were checked before."""
        if self.store.get(stage_key("finite", 1, model=self.ref.key)[0]) is None:
            _ = self.model

    def release(self) -> None:
        """Free the weights; what the store knows of the model stays."""
        for attribute in ("originals", "linears", "blocks", "model"):
            self.__dict__.pop(attribute, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def linears(self):
        return find_linears(self.model)[0]

    @cached_property
    def blocks(self):
        return find_blocks(self.model)[1]

    @cached_property
    def originals(self) -> Originals:
        return Originals(self.linears)

    @cached_property
    def structure(self) -> dict:
        """Shapes, blocks and whole-model counts, from the model's configuration alone (no weights), stored by fingerprint."""
        key, identity = stage_key("structure", 2, model=self.ref.key)
        with self.store.lock(key, identity["stage"]):
            entry = self.store.get(key)
            if entry is None:
                content = self._structure()
                entry = self.store.put(key, identity, {"model": self.label}, lambda folder: write_json(folder / "structure.json", content))
        return json.loads((entry / "structure.json").read_text())

    def _structure(self) -> dict:
        model = empty_model(self.where, self.ref, self.token)
        linears, block_of = find_linears(model)
        left_out = uncovered(linears, find_blocks(model)[1])
        if left_out:
            raise UserError(f"{self.ref.name} has {len(left_out)} weight matrices in its blocks that are not nn.Linear (first: {left_out[0]}); "
                            "they would stay unquantized, so its bits could not be compared; use a model with plain linears")
        bits, values = other_bits(model, linears)
        return {"shapes": {f: list(lin.weight.shape) for f, lin in linears.items()}, "block_of": block_of, "other": [bits, values],
                "parameters": sum(p.numel() for p in model.parameters())}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {fqn: tuple(shape) for fqn, shape in self.structure["shapes"].items()}

    @property
    def block_of(self) -> dict[str, int]:
        return self.structure["block_of"]

    @property
    def other(self) -> tuple[int, int]:
        return tuple(self.structure["other"])

    @cached_property
    def group_size(self) -> int:
        """The group size of all common cells: as asked, or the largest of 128, 96, 64, 32 that divides every width."""
        if self.grid.group_size is not None:
            check_groups(self.shapes, self.grid.group_size)
            return self.grid.group_size
        fits = fitting_groups([cols for _, cols in self.shapes.values()], AUTO_GROUPS)
        if not fits:
            check_groups(self.shapes, AUTO_GROUPS[-1])
        return fits[0]  # the largest stores the least, so if it cannot reach a budget, no smaller one can

    def budget(self, avg_bits: float | None) -> Budget:
        """The budget of a common cell; native cells get the levels and group size without a bound."""
        return Budget(avg_bits or 0.0, tuple(sorted(set(self.grid.levels))), self.group_size, 16, self.grid.tolerance)
