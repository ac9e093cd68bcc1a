"""Any quantized linear as the arrays that would be stored: ``8 · Σ nbytes == layer_bits(layer, shape)`` whatever the form."""

import numpy as np
import torch

from core.types import LayerPlan, Stored
from quantization.bnb import eight_bit, four_bit
from quantization.codebook import pack_codebook
from quantization.pack import pack, pack_stored
from quantization.slim import pack_slim
from quantization.spqr import pack_spqr

SOLVED = {"grid": pack_stored, "bilevel": pack_spqr, "slim": pack_slim, "codebook": pack_codebook}


def packed(found: Stored) -> dict[str, np.ndarray]:
    """The stored arrays, uint8, of what a quantizer that reads data left."""
    return SOLVED[found.layer.form](found)


def packed_alone(weight: torch.Tensor, layer: LayerPlan, quantizer: str) -> dict[str, np.ndarray]:
    """The stored arrays, uint8, of a quantizer that reads the weight alone."""
    if layer.form == "bnb4":
        codes, maxima, _ = four_bit(weight, quantizer.removeprefix("bnb-"))
        return {"codes": codes.numpy().ravel(), "maxima": maxima.float().numpy().view(np.uint8).ravel()}
    if layer.form == "bnb8":
        codes, maxima, _ = eight_bit(weight)
        return {"codes": codes.numpy().view(np.uint8).ravel(), "maxima": maxima.float().numpy().view(np.uint8).ravel()}
    return pack(weight, layer, float_zero=quantizer.startswith("rtn-float"))
