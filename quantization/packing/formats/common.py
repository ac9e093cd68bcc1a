"""What the formats of other engines share: weights that are not quantized, and a linear's integer grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from quantization.packing.checkpoint import Contents, Packed
from quantization.packing.decode import grid_of
from quantization.packing.split import tied_names


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
