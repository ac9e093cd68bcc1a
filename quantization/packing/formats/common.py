"""What the formats of other engines share: weights that are not quantized, and a linear's integer grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from quantization.packing.checkpoint import Contents, Packed
from quantization.packing.decode import grid_of
from quantization.packing.split import tied_names

WEIGHTS = "model.safetensors"


def save_weights(folder: Path, tensors: dict[str, torch.Tensor], kind: str = "pt") -> int:
    """Write one file of weights; returns its bytes."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS, {"format": kind})
    return (folder / WEIGHTS).stat().st_size


def save_config(folder: Path, module: nn.Module, change=lambda config: config) -> None:
    """config.json, ``change``d, and generation_config.json where the model has one.

    It names the dtype of the arithmetic: without it a loader takes that of some stored weight, which may be narrower.
    """
    module.config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"dtype": str(module.dtype).removeprefix("torch.")}
    path.write_text(json.dumps(change(config), indent=1))
    if module.generation_config is not None:
        module.generation_config.save_pretrained(folder)


def other_weights(contents: Contents) -> dict[str, torch.Tensor]:
    """All weights of the model but those of quantized linears, tied ones once."""
    tied = tied_names(contents.module)
    return {name: value for name, value in contents.module.state_dict().items()
            if name.removesuffix(".weight") not in contents.linears and name not in tied}


def narrowest(value: torch.Tensor) -> torch.Tensor:
    """A weight in bf16 if that loses nothing."""
    half = value.bfloat16()
    return half if value.dtype == torch.float32 and torch.equal(half.float(), value) else value


def grid_parts(module: nn.Module, fqn: str, packed: Packed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8 [out, in], scales and zero points float32 [out, G] of a linear on an integer grid."""
    shape = tuple(module.get_submodule(fqn).weight.shape)
    return grid_of({name: torch.from_numpy(array) for name, array in packed.arrays.items()}, packed.layer, shape)


def counted_bytes(packed: Packed, *names: str) -> int:
    """Bytes of a linear's stored arrays, of those named or of all."""
    return sum(array.nbytes for name, array in packed.arrays.items() if not names or name in names)


def repeated(values: torch.Tensor, group: int, size: int) -> torch.Tensor:
    """Numbers [out, G] of groups of ``group`` columns, for groups of ``size``, which divides it."""
    return values.repeat_interleave(group // size, dim=1)


def row_words(codes: torch.Tensor, bits: int) -> np.ndarray:
    """Codes [out, in] as a stream of bits a row, the lowest first, in uint32 words [out, in · bits / 32]."""
    planes = np.unpackbits(codes.numpy()[..., None], axis=2, count=bits, bitorder="little")
    return np.packbits(planes.reshape(len(codes), -1), axis=1, bitorder="little").view(np.uint32)
