"""bitsandbytes controls: NF4, FP4 and LLM.int8 weights, made by bitsandbytes' own functions.  No data.

    bnb4   64 consecutive weights, row-major:  m = max |w|,   ŵ = m · nearest code to w / m       4 bits + float32 m
    bnb8   one row, rounded to fp16 first:     m = max |w|,   ŵ = m · round(127 w / m) / 127      8 bits + float32 m

Codes: the 16 NormalFloat values (arXiv 2305.14314, appendix E), or ± {0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1} for FP4.
bnb8 is the weight half of LLM.int8 (arXiv 2208.07339); its activations stay in full precision here.

Deviation: none in the stored bytes.  bitsandbytes 0.50 reads the maxima of a matrix on a CPU row by row, as if a block
never crossed a row: wrong wherever the width is no multiple of the block (576 at blocks of 128, 96 at 64).  So blocks
are 64, and the matrix goes through as one long row, for which both readings are the same.
"""

from __future__ import annotations

import logging
import math

from core.errors import UserError
from core.lazy import torch
from core.registry import quantizer
from core.types import LayerPlan

BLOCK = 64  # what transformers uses
FORM = {"nf4": "bnb4", "fp4": "bnb4", "int8": "bnb8"}


def functional():
    """bitsandbytes.functional, imported on first use: seconds, and lines about kernels that a CPU does not have."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional as library
    except ImportError as error:
        raise UserError(f"the bnb rows need bitsandbytes, which does not import ({error}); pip install bitsandbytes, "
                        "or leave the bnb methods out") from error
    finally:
        logger.setLevel(level)
    return library


def bnb_layer(kind: str, shape: tuple[int, int]) -> LayerPlan:
    """How bitsandbytes stores a linear of ``shape`` [out, in]; ``kind`` is "nf4", "fp4" or "int8"."""
    if kind not in FORM:
        raise UserError(f"bitsandbytes kind {kind!r} is not one of {', '.join(FORM)}")
    bits, group_size = (8, shape[1]) if kind == "int8" else (4, BLOCK)
    return LayerPlan(bits=bits, group_size=group_size, scale_bits=32, form=FORM[kind])


def _check(weight: torch.Tensor, layer: LayerPlan, kind: str) -> None:
    want = bnb_layer(kind, tuple(weight.shape))
    if (layer.form, layer.bits, layer.group_size) != (want.form, want.bits, want.group_size) or layer.keep is not None:
        raise UserError(f"bnb-{kind} stores {want.bits} bits a weight and one maximum per {want.group_size}, the plan "
                        f"says form {layer.form!r}, {layer.bits} bits in groups of {layer.group_size}; use allocator "
                        f"bnb with kind={kind!r}")
    if not torch.isfinite(weight).all():
        raise UserError(f"the weights for bnb-{kind} hold NaN or infinity; the model is broken, load it again")


def four_bit(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed codes uint8 [numel/2, 1], block maxima float32 [numel/64] and ŵ in the dtype of ``weight``."""
    library = functional()
    codes, state = library.quantize_4bit(weight.reshape(-1), blocksize=BLOCK, quant_type=kind)
    return codes, state.absmax, library.dequantize_4bit(codes, state).reshape(weight.shape)


def eight_bit(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes int8 [out, in], row maxima float32 [out] and ŵ in the dtype of ``weight``, as Linear8bitLt stores them."""
    library = functional()
    half = weight.half()
    if torch.isinf(half).any():
        raise UserError("a weight exceeds 65504, the largest fp16 number, through which bnb-int8 goes; use bnb-nf4 for "
                        "this model")
    codes, stats, _ = library.int8_vectorwise_quant(half)
    codes[stats == 0] = 0  # a row of zeros is divided by its maximum; the cast of 0 · inf is undefined
    return codes, stats, library.int8_vectorwise_dequant(codes, stats).to(weight.dtype)


def from_four_bit(codes: torch.Tensor, maxima: torch.Tensor, shape: tuple[int, ...], *, kind: str,
                  dtype: torch.dtype) -> torch.Tensor:
    """Ŵ of the codes and maxima that :func:`four_bit` gave, in the ``dtype`` that was quantized."""
    library = functional()
    state = library.QuantState(absmax=maxima, shape=torch.Size([math.prod(shape)]), blocksize=BLOCK, dtype=dtype,
                               code=library.get_4bit_type(kind, device=codes.device), quant_type=kind)
    return library.dequantize_4bit(codes, state).reshape(shape)


def from_eight_bit(codes: torch.Tensor, maxima: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Ŵ of the codes and maxima that :func:`eight_bit` gave."""
    return functional().int8_vectorwise_dequant(codes, maxima).to(dtype)


@quantizer("bnb-nf4")
def bnb_nf4(weight: torch.Tensor, layer: LayerPlan) -> torch.Tensor:
    """4-bit NormalFloat in blocks of 64."""
    _check(weight, layer, "nf4")
    return four_bit(weight, "nf4")[2]


@quantizer("bnb-fp4")
def bnb_fp4(weight: torch.Tensor, layer: LayerPlan) -> torch.Tensor:
    """4-bit floating point in blocks of 64."""
    _check(weight, layer, "fp4")
    return four_bit(weight, "fp4")[2]


@quantizer("bnb-int8")
def bnb_int8(weight: torch.Tensor, layer: LayerPlan) -> torch.Tensor:
    """8-bit integers, one scale a row."""
    _check(weight, layer, "int8")
    return eight_bit(weight)[2]
