"""Readers for the golden numbers beside the repository; the packing is described in their README files."""

import importlib.util
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.15.mlp.gate_proj",
          "model.layers.29.self_attn.o_proj")


@lru_cache
def golden(shared: Path, model: Path) -> "Golden":
    """One reader a session."""
    return Golden(shared, model)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def golden_io(shared: Path, model: Path):
    """The reader that lies beside the golden numbers, told where the model is."""
    spec = importlib.util.spec_from_file_location("golden_io", shared / "golden" / "golden_io.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    reader.MODEL = str(model)
    return reader


def symmetric(triangle: torch.Tensor) -> torch.Tensor:
    """A full matrix from its row-major upper triangle."""
    n = int((np.sqrt(8 * triangle.numel() + 1) - 1) // 2)
    full = torch.zeros(n, n)
    at = torch.triu_indices(n, n)
    full[at[0], at[1]] = triangle
    return full.triu() + full.triu(1).t()


class Golden:
    """What the published GPTQ and TaCQ codes gave."""

    def __init__(self, shared: Path, model: Path):
        self.folder, self.io = shared / "golden", golden_io(shared, model)
        self.cfg, self.weight, self.hessian, self.load = self.io.cfg, self.io.weight, self.io.hessian, self.io.load

    def extra(self, method: str) -> dict:
        return json.loads((self.folder / method / "extra.json").read_text())

    def tacq(self, bits: int) -> dict[str, dict]:
        """Per layer: weight, keep mask, and for corrupt and masked: scale, zero, values, Hessian where it was kept."""
        folder = self.folder / "tacq"
        per_layer = json.loads((folder / "per_layer.json").read_text())
        values, scales, masks = (tensors(folder / f"{what}_{bits}bit.safetensors")
                                 for what in ("weights", "scales", "mask"))
        hessians, mask = tensors(folder / "hessians.safetensors"), masks["flat_indices"].long()
        starts, start = {}, 0
        for name in per_layer["order"]:
            starts[name] = start
            start += int(np.prod(per_layer["layers"][f"{bits}bit"][name]["shape"]))
        out = {}
        for name in (key.removeprefix("corrupt.") for key in values if key.startswith("corrupt.")):
            rows = values[f"corrupt.{name}"].shape[0]
            weight = self.weight(name.removesuffix(".weight"))[:rows]
            flat = torch.zeros(weight.numel(), dtype=torch.bool)
            inside = mask[(mask >= starts[name]) & (mask < starts[name] + weight.numel())] - starts[name]
            flat[inside] = True
            case = {"weight": weight, "keep": flat.reshape(weight.shape).numpy()}
            for kind in ("corrupt", "masked"):
                found = hessians.get(f"any.{name}", hessians.get(f"masked{bits}.{name}") if kind == "masked" else None)
                case |= {("hessian", kind): None if found is None else symmetric(found),
                         ("values", kind): values[f"{kind}.{name}"],
                         ("scale", kind): scales[f"{kind}.{name}.scale"], ("zero", kind): scales[f"{kind}.{name}.zero"]}
            out[name] = case
        return out
