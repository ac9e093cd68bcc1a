"""Two branches: whole rows or columns at 16 bits, and the rest in bitsandbytes' 4 bits, stored without the kept ones.

    y = x[:, keep] · W[:, keep]ᵀ + x[:, rest] · Ŵ[:, rest]ᵀ + b            columns kept; rows alike, in the output

The rest is one matrix of its own, row after row, in blocks of 64 (quantization/solvers/bnb.py).  The circuit-aware
form of the brief; its public code slices rows where it means columns, and never copies the trained weights.
"""

from __future__ import annotations

from core.errors import UserError
from core.lazy import torch
from core.registry import quantizer
from core.types import LayerPlan
from quantization.solvers.bnb import BLOCK, four_bit
from quantization.solvers.kept import sixteen

KIND = "nf4"


def split_layer(keep) -> LayerPlan:
    """How a linear with this mask [out, in] of whole rows or columns is stored; None keeps nothing."""
    return LayerPlan(bits=4, group_size=BLOCK, scale_bits=32, form="split", keep=keep)


def rest_of(weight: torch.Tensor, layer: LayerPlan) -> torch.Tensor:
    """The weights of the 4-bit branch, flat, row after row; UserError for a mask that is no whole rows or columns."""
    if layer.keep is None:
        return weight.reshape(-1)
    keep = torch.as_tensor(layer.keep, device=weight.device)
    if not (keep == keep[:1]).all() and not (keep == keep[:, :1]).all():
        raise UserError("the split form keeps whole rows or whole columns; this mask keeps single weights")
    return weight[~keep]


@quantizer("bnb-nf4-split")
def nf4_split(weight: torch.Tensor, layer: LayerPlan) -> torch.Tensor:
    """NF4 for what is not kept; the kept at 16 bits."""
    if layer.form != "split":
        raise UserError(f"bnb-nf4-split stores the split form, the plan says {layer.form!r}; use allocator "
                        "circuit_fraction")
    if not torch.isfinite(weight).all():
        raise UserError("the weights for bnb-nf4-split hold NaN or infinity; the model is broken, load it again")
    values, rest = sixteen(weight), rest_of(weight, layer)
    keep = torch.zeros(weight.shape, dtype=torch.bool) if layer.keep is None else torch.as_tensor(layer.keep)
    if len(rest):
        values = values.clone()
        values[~keep.to(weight.device)] = four_bit(rest, KIND)[2]
    return values
