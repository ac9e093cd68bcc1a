"""Plans on disk and their identity by content."""

import json

import numpy as np
from safetensors.numpy import load_file, save_file

from core.digest import array_digest, digest, write_json
from core.types import LayerPlan, Plan


def plan_digest(made: Plan) -> str:
    """Identity of a plan by content: two methods that decide alike share weights and samples."""
    return digest({fqn: [layer.bits, layer.group_size, layer.scale_bits, layer.zero_bits,
                         None if layer.group_bits is None else array_digest(layer.group_bits),
                         None if layer.keep is None else array_digest(layer.keep), layer.form, layer.ordered]
                   for fqn, layer in sorted(made.layers.items())})


def write_plan(folder, made: Plan) -> None:
    """plan.json, and keep.safetensors (flat positions of kept weights) where there are any."""
    layers = {fqn: {"bits": p.bits, "group_size": p.group_size, "scale_bits": p.scale_bits, "zero_bits": p.zero_bits,
                    "group_bits": None if p.group_bits is None else p.group_bits.tolist(), "form": p.form, "ordered": p.ordered,
                    "shape": None if p.keep is None else list(p.keep.shape)} for fqn, p in made.layers.items()}
    write_json(folder / "plan.json", {"layers": layers, "stored_bits": made.stored_bits, "avg_bits": made.avg_bits,
                                      "model_avg_bits": made.model_avg_bits, "notes": made.notes})
    kept = {fqn: np.flatnonzero(p.keep).astype(np.int64) for fqn, p in made.layers.items() if p.keep is not None}
    if kept:
        save_file(kept, folder / "keep.safetensors")


def read_plan(folder) -> Plan:
    """Undo :func:`write_plan`."""
    head = json.loads((folder / "plan.json").read_text())
    kept = load_file(folder / "keep.safetensors") if (folder / "keep.safetensors").exists() else {}
    layers = {}
    for fqn, p in head["layers"].items():
        keep = None
        if fqn in kept:
            keep = np.zeros(p["shape"], dtype=bool)
            keep.flat[kept[fqn]] = True
        bits = None if p["group_bits"] is None else np.array(p["group_bits"], dtype=np.uint8)
        forms = {name: p[name] for name in ("form", "ordered") if name in p}  # a plan stored before there were forms has neither
        layers[fqn] = LayerPlan(p["bits"], p["group_size"], p["scale_bits"], p["zero_bits"], bits, keep, **forms)
    return Plan(layers, head["stored_bits"], head["avg_bits"], head["model_avg_bits"], head["notes"])
