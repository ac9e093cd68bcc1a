"""Activations at few bits while the model runs: what an integer kernel would compute, in the arithmetic of the model.

A linear's input x_t [in] of one token, in groups of its own channels (the last may be ragged), each group by its range
over the channels that are not kept, 0 within it:

    s = (max − min) / (2^b − 1)    z = round(−min / s)    x̂ = s (clamp(round(x / s) + z, 0, 2^b − 1) − z)

Kept channels (a share of each linear's, those with the largest mean |x| over calibration tokens) stay as they are and
enter no range.  s is float32, z a code; x̂ is rounded to x's own dtype, in which the linear then multiplies.  Every
token is by itself, so neither padding nor the rest of a batch changes a range.  Embeddings, norms, attention scores and
the head are not touched.  Keys and values (``kv_bits``) are what k and v put out, before positions turn the keys, in
groups of a head.

The brief's W4A4 project quantizes an input after its linear has read it; here the linear reads x̂.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from core.activations import Activations
from core.architecture import find_heads, find_linears
from core.errors import UserError
from core.forward import device_of, inputs_of
from quantization.solvers.grid import ends, integer_grid


def quantized(x: torch.Tensor, bits: int, group: int, keep: torch.Tensor | None = None) -> torch.Tensor:
    """x̂ of x [..., in] in x's dtype; ``keep``: bool [in], channels left alone.

    Raises UserError for NaN or infinity among the channels that are quantized.
    """
    whole = x.shape[-1] // group * group
    parts = [_groups(x[..., :whole], bits, group, keep if keep is None else keep[:whole])] if whole else []
    if whole < x.shape[-1]:
        parts.append(_groups(x[..., whole:], bits, x.shape[-1] - whole, keep if keep is None else keep[whole:]))
    return torch.cat(parts, -1)


def _groups(x: torch.Tensor, bits: int, group: int, keep: torch.Tensor | None) -> torch.Tensor:
    """The same where the width is whole groups."""
    real = x.float().unflatten(-1, (-1, group))  # [..., G, group]
    ranged = real if keep is None else real.masked_fill(keep.view(-1, group), 0.0)  # a range holds 0 anyway
    low, high = ends(ranged, -1)
    if not torch.isfinite(high - low).all():
        raise UserError("activations hold NaN or infinity, which no range of codes holds; use more bits for the "
                        "weights, or leave --act_bits at 16")
    grid = integer_grid(low, high, 2**bits - 1, stored=False)
    values = grid.values_(grid.codes(real)).flatten(-2).to(x.dtype)
    return values if keep is None else torch.where(keep, x, values)


@contextmanager
def quantizing(model: nn.Module, how: Activations, kept: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Make every linear of the blocks read quantized inputs while this lasts; ``kept``: bool [in] by full name.

    Raises UserError for --kv_bits where keys and values are no linears of their own.
    """
    with ExitStack() as hooks:
        if how.bits < 16 and how.keep < 1:
            linears = find_linears(model)[0]
            keep = [kept[fqn].to(device_of(model)) if how.keep else None for fqn in linears]
            width = [linear.in_features for linear in linears.values()]

            def read(at: int, x: torch.Tensor) -> torch.Tensor:
                versions = x.unflatten(-1, (-1, width[at]))  # two where heads are chosen at run time
                return quantized(versions, how.bits, how.group, keep[at]).flatten(-2)

            hooks.enter_context(inputs_of(list(linears.values()), read))
        if how.kv_bits < 16:
            for one in find_heads(model):
                for fqn in (one.k, one.v):
                    hooks.callback(model.get_submodule(fqn).register_forward_hook(_after(how, one.width)).remove)
        yield


def _after(how: Activations, width: int):
    return lambda _module, _args, out: quantized(out, how.kv_bits, width)


def kept_channels(magnitude: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Bool [in] by full name: the share of each linear's channels with the largest mean |x| [in], never more."""
    masks = {}
    for fqn, value in magnitude.items():
        masks[fqn] = torch.zeros(len(value), dtype=torch.bool)
        masks[fqn][torch.sort(value, descending=True, stable=True).indices[:int(share * len(value) + 1e-9)]] = True
    return masks
