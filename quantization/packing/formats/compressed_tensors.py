"""compressed-tensors: integers around zero, bits of their own for each linear, for transformers and vLLM.

Of the paths of transformers 5.23 this is the one that loads linears of several widths right: zero points and
``dequantize=True`` are not (docs/EXPORTS.md).  A code is stored as q − 2^(b − 1), dense in int32 words a row.
"""

from __future__ import annotations

from pathlib import Path

import torch

from core.errors import UserError
from quantization.packing.checkpoint import Contents, Rules, Sizes
from quantization.packing.formats.common import (
    counted_bytes,
    grid_parts,
    narrowest,
    other_weights,
    row_words,
    save_config,
    save_weights,
)
from quantization.solvers.grid import middle

RULES = Rules(forms=frozenset({"grid"}), asymmetric=False, bits=frozenset({2, 3, 4, 5, 6, 7, 8}))
WORDS = "packed integers in the compressed-tensors layout; transformers unpacks them at the first use"
LOAD = 'AutoModelForCausalLM.from_pretrained("DIR")  # pip install compressed-tensors'
SHAPE_BYTES = 16


def write(folder: Path, contents: Contents) -> Sizes:
    """Config with the scheme of every linear, and the packed weights."""
    module, tensors, sizes = contents.module, {}, Sizes()
    schemes: dict[tuple[int, int], list[str]] = {}
    padding = zeros = 0
    for fqn, packed in contents.linears.items():
        codes, scale, zero = grid_parts(module, fqn, packed)
        bits, group = packed.layer.bits, packed.layer.group_size
        if not (zero == middle(bits)).all():
            raise UserError(f"{fqn} has zero points; compressed-tensors holds ranges around zero alone "
                            "(symmetric=true)")
        words = row_words(torch.nn.functional.pad(codes, (0, -codes.shape[1] % 32)), bits)
        words = words[:, :-(-codes.shape[1] * bits // 32)].copy()
        tensors |= {f"{fqn}.weight_packed": torch.from_numpy(words.view("int32")),
                    f"{fqn}.weight_scale": scale.half() if packed.layer.scale_bits == 16 else scale,
                    f"{fqn}.weight_shape": torch.tensor(codes.shape)}
        sizes.linears += sum(tensors[f"{fqn}.{name}"].nbytes for name in ("weight_packed", "weight_scale",
                                                                          "weight_shape"))
        padding += words.nbytes - counted_bytes(packed, "codes")
        zeros += counted_bytes(packed, "zero")
        schemes.setdefault((bits, 0 if group >= codes.shape[1] else group), []).append(fqn)
    sizes.extra = {"the shape of each linear": SHAPE_BYTES * len(contents.linears), "rows end on 32 bits": padding,
                   "zero points, all alike, are not written": -zeros}
    tensors |= {name: narrowest(value) for name, value in other_weights(contents).items()}
    sizes.others = save_weights(folder, tensors) - sizes.linears
    _write_config(folder, contents, schemes)
    return sizes


def _write_config(folder: Path, contents: Contents, schemes: dict[tuple[int, int], list[str]]) -> None:
    module = contents.module
    linears = [name for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)]
    groups = {f"group_{number}": {
        "targets": names, "input_activations": None, "output_activations": None, "format": "pack-quantized",
        "weights": {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False,
                    "strategy": "group" if group else "channel", "group_size": group or None}}
        for number, ((bits, group), names) in enumerate(sorted(schemes.items()))}
    told = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "config_groups": groups, "kv_cache_scheme": None,
            "ignore": [name for name in linears if name not in contents.linears]}
    save_config(folder, module, lambda config: config | ({"quantization_config": told} if groups else {}))
