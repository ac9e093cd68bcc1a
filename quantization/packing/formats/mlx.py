"""mlx: affine integers for Apple's MLX, bits of their own for each linear; read by mlx-lm.

    ŵ = scale · q + bias with bias = −scale · zero point; both in float32 for a float32 model, where that is exact, else
    in fp16, which rounds biases

MLX has groups of 32, 64 and 128 columns.  Larger groups are written as several with the same numbers (96 as three of
32): the same ŵ in more bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from quantization.packing.checkpoint import Contents, Rules, Sizes
from quantization.packing.formats.common import (
    counted_bytes,
    grid_parts,
    other_weights,
    repeated,
    row_words,
    save_config,
    save_weights,
)

GROUPS = (128, 64, 32)
BITS = frozenset({2, 3, 4, 5, 6, 8})
RULES = Rules(forms=frozenset({"grid", "log"}), bits=BITS, group=lambda size: size % GROUPS[-1] == 0,
              groups="MLX has groups of 32, 64, 128 and what these divide")
WORDS = "packed integers in MLX's affine layout, for Apple silicon"
LOAD = 'from mlx_lm import load; load("DIR")  # pip install mlx-lm'


def write(folder: Path, contents: Contents) -> Sizes:
    """Config with bits and group of every linear, and the packed weights."""
    module, tensors, sizes = contents.module, {}, Sizes()
    dtype = torch.float32 if module.dtype == torch.float32 else torch.float16
    told: dict[str, object] = {}
    numbers = counted = 0
    for fqn, packed in contents.linears.items():
        codes, scale, zero = grid_parts(module, fqn, packed)
        bits, group = packed.layer.bits, min(packed.layer.group_size, codes.shape[1])
        size = next(size for size in GROUPS if group % size == 0)
        scale, zero = repeated(scale, group, size), repeated(zero, group, size)
        tensors |= {f"{fqn}.weight": torch.from_numpy(row_words(codes, bits).view(np.int32)).view(torch.uint32),
                    f"{fqn}.scales": scale.to(dtype), f"{fqn}.biases": (-scale * zero).to(dtype)}
        sizes.linears += sum(tensors[f"{fqn}.{name}"].nbytes for name in ("weight", "scales", "biases"))
        numbers += tensors[f"{fqn}.scales"].nbytes + tensors[f"{fqn}.biases"].nbytes
        counted += counted_bytes(packed) - counted_bytes(packed, "codes")
        told[fqn] = {"group_size": size, "bits": bits, "mode": "affine"}
    name = str(dtype).removeprefix("torch.")
    sizes.extra = {f"scales and biases in {name}, groups of 128, 64 or 32": numbers - counted}
    tensors |= other_weights(contents)  # in the dtype of the arithmetic, which MLX takes from them
    sizes.others = save_weights(folder, tensors, "mlx") - sizes.linears
    usual = {"group_size": GROUPS[0], "bits": 4, "mode": "affine"}  # of what is not named; all quantized linears are
    how = {"quantization": usual | told, "quantization_config": usual | told} if told else {}
    save_config(folder, module, lambda config: with_rope(config) | how)
    return sizes


def with_rope(config: dict) -> dict:
    """A config.json with its rotary positions under the names that mlx-lm reads, which transformers 5 gave up."""
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in rope:
        return config
    scaled = {} if rope.get("rope_type", "default") == "default" else {"rope_scaling": rope}
    return {"rope_theta": rope["rope_theta"]} | scaled | config
