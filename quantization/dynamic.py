"""Heads that each token chooses at run time: those with the largest output read 16-bit weights, the others codes.

In every block, for the token x_t [d] and each query head h, with Ŵ the quantized and W the 16-bit weights:

    â_h, a_h   the head's output, its queries, keys and values by Ŵ, by W
    S_t        the K heads with the largest ‖â_h‖₂
    y_t        Σ_{h not in S_t} Ô_h â_h + Σ_{h in S_t} O_h a_h + b

Both versions of all heads run, because a later token may choose any of them and then needs its keys and values of all
tokens: the queries, keys and values of both lie side by side as if the attention had twice as many heads, so masks, the
rotation of positions and every kind of key-value cache work as they are.  The feed-forward part is not touched.
What it stores is all attention twice (quantization/bits.py).

The brief's circuit-quantization project: "dynamic head preservation"; its public code has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.functional import linear as product

from core.architecture import Attention, find_heads
from core.errors import UserError
from core.forward import call, device_of, is_out_of_memory, pad
from core.types import LayerPlan

SAME = 0.05  # of the largest logit: what another order of 16-bit sums may change


@contextmanager
def choosing_heads(model: nn.Module, layers: dict[str, LayerPlan], weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """Let each token choose its heads, where a plan says so; without such a plan nothing changes.

    The model holds Ŵ; ``weights``: the linears as loaded, by full name.  Raises UserError for an attention whose number
    of heads is not that of its linears' rows.
    """
    with ExitStack() as stack:
        if any(layer.dynamic_heads for layer in layers.values()):
            _check(model, layers)
            stack.enter_context(_changed(model, layers, weights))
        yield


@contextmanager
def _changed(model: nn.Module, layers: dict[str, LayerPlan], weights: dict[str, torch.Tensor]) -> Iterator[None]:
    with ExitStack() as stack:
        for one in find_heads(model):
            for forward, fqn in _forwards(model, one, layers[one.o].dynamic_heads, weights):
                stack.enter_context(_in_place_of(model.get_submodule(fqn), forward))
        yield


def _forwards(model: nn.Module, one: Attention, count: int, weights: dict[str, torch.Tensor]) -> list[tuple]:
    """What the linears of an attention compute in place of their products, and their names."""
    def whole(fqn: str) -> torch.Tensor:
        return weights[fqn].to(device_of(model))

    def both(fqn: str):
        linear, other = model.get_submodule(fqn), whole(fqn)
        return lambda x: torch.cat([product(x, linear.weight, linear.bias), product(x, other, linear.bias)], -1)

    def out(x: torch.Tensor) -> torch.Tensor:
        heads = x.view(*x.shape[:-1], 2, one.heads, one.width)
        chosen = heads[..., 0, :, :].float().norm(dim=-1).topk(count, -1).indices
        whole_heads = torch.zeros(*x.shape[:-1], one.heads, 1, dtype=x.dtype, device=x.device)
        whole_heads.scatter_(-2, chosen[..., None], 1)
        quantized, at_16_bits = heads[..., 0, :, :] * (1 - whole_heads), heads[..., 1, :, :] * whole_heads
        return product(quantized.flatten(-2), last.weight, last.bias) + product(at_16_bits.flatten(-2), last_whole)

    last, last_whole = model.get_submodule(one.o), whole(one.o)
    return [*((both(fqn), fqn) for fqn in (one.q, one.k, one.v)), (out, one.o)]


@contextmanager
def _in_place_of(module: nn.Module, forward) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@torch.no_grad()
def _check(model: nn.Module, layers: dict[str, LayerPlan]) -> None:
    """Run a few tokens with the same weights in both versions, which must change nothing: an attention that counts its
    heads elsewhere, or mixes them, would.
    """
    own = {fqn: model.get_submodule(fqn).weight for fqn in layers}
    ids, mask = pad([[0, 1, 2], [1]], device_of(model))
    want, why = call(model, ids, mask).logits.float(), "its heads are mixed with each other"
    try:
        with _changed(model, layers, own):
            far = (call(model, ids, mask).logits.float() - want).abs().max()
        if far <= SAME * want.abs().max():
            return
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        why = str(error).splitlines()[0]
    raise UserError(f"{type(model).__name__} cannot choose heads at run time, because its attention does not take its "
                    f"heads from its linears one by one ({why}); use heads-static-native")
