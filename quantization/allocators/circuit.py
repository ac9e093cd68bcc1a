"""Allocators of heads and neurons, whole; their rows are exempt from the budget and show their own true bits.

``circuit_fraction``    the best share of the heads, and of the neurons, at 16 bits, the rest in NF4 (circuit-native)
``circuit_complement``  the same over the common grid, whose codes stay stored below what is kept, as in every common
                        row: what is left of the task when the complement is quantized
``heads_a_block``       in every block the best K heads at 16 bits, all else in the common grid; the other query heads
                        of a kept key/value head read it too
``heads_a_token``       no fixed heads: at run time, in every block, those K of each token whose output is the largest

A head is its rows of q, its columns of o and its key/value head's rows of k and v; a neuron its rows of the linears
that lead into it and its column of the one that leads out (core/architecture.py).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.errors import UserError
from core.lazy import torch
from core.registry import allocator
from core.settings import Setting
from core.types import LayerPlan
from quantization.allocators.common import AllocContext
from quantization.allocators.native import BITS
from quantization.allocators.ranking import first_k, most
from quantization.bits import bits_within, grid_plan, layer_bits
from quantization.solvers.split import split_layer

FP16_RATIO = Setting("fp16_ratio", float, 0.2, "share of the heads, and of the neurons, that stays at 16 bits", low=0,
                     high=1, flag=False)
ATTN_THRESHOLD = Setting("attn_importance_threshold", float, 0.0, "heads below this share of the best head's "
                         "importance are not kept", low=0, high=1, flag=False)
MLP_THRESHOLD = Setting("mlp_importance_threshold", float, 0.0, "neurons below this share of the best neuron's "
                        "importance are not kept", low=0, high=1, flag=False)
STORED = Setting("stored_bits", float, None, "stored bits a weight that kept heads and neurons may lead to, in place "
                 "of fp16_ratio", low=2, high=16, flag=False)
FIRST = Setting("first", str, "best", "which heads and neurons are kept first", choices=("best", "worst"), flag=False)
UNITS = Setting("units", str, "all", "what is kept: heads and neurons, or one of the two",
                choices=("all", "heads", "neurons"), flag=False)
HEADS = Setting("heads", int, 2, "heads of every block that run at 16 bits", low=1, flag=False)


class Units:
    """The heads and neurons of a model and their scores; neurons only where the scorer tells them apart.

    Raises UserError for scores that are not of heads.
    """

    def __init__(self, ctx: AllocContext, who: str):
        scores, self.ctx = ctx.scores, ctx
        given = "none" if scores is None else scores.granularity
        self.attention = ctx.attention() if given == "line" else []
        if not self.attention or any(scores.values[one.o].shape[0] != 1 for one in self.attention):
            raise UserError(f"{who} keeps heads and neurons; combine it with a scorer of these, such as circuit or "
                            f"heads-ablation; this row's scores: {given}")
        self.mlps = ctx.mlps() if "neurons" in scores.notes.get("kinds", {}).values() else []
        self.scores = {"heads": torch.cat([scores.values[one.o][0, ::one.width] for one in self.attention]),
                       "neurons": torch.cat([torch.zeros(0), *(scores.values[one.out][0] for one in self.mlps)])}

    def best(self, kind: str, count: int, worst: bool = False) -> torch.Tensor:
        """Positions of so many units of a kind, the best (or the worst) of the model; equal ones in spread order."""
        scores = self.scores[kind].float()
        return first_k(-scores if worst else scores, count)

    def count(self, kind: str, ratio: float) -> int:
        """How many units a share of them is: never more than the share."""
        return int(ratio * len(self.scores[kind]) + 1e-9)

    def masks(self, kept: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Bool [out, in] masks of the linears that keep anything, by the positions of the kept units."""
        lines: dict[str, torch.Tensor] = {}
        for kind, parts, sizes in (("heads", self.attention, [one.heads for one in self.attention]),
                                   ("neurons", self.mlps, [one.neurons for one in self.mlps])):
            flags = torch.zeros(sum(sizes), dtype=torch.bool)
            flags[kept[kind]] = True
            for one, own in zip(parts, flags.split(sizes)):
                lines |= one.lines(own)
        return {fqn: line.expand(self.ctx.shapes[fqn]).numpy().copy() for fqn, line in lines.items() if line.any()}


def _notes(kept: dict[str, torch.Tensor]) -> dict:
    return {"kept_units": {kind: len(at) for kind, at in kept.items()}}


@allocator("circuit_fraction", 2, options=(FP16_RATIO, ATTN_THRESHOLD, MLP_THRESHOLD, STORED), exempt=True, keeps=True)
def circuit_fraction(ctx: AllocContext):
    """The best heads, and apart from them the best neurons, over the whole model: never more than the ratio, and none
    below the threshold's share of the best; or as many as ``stored_bits`` has room for.
    """
    units = Units(ctx, "circuit_fraction")
    if STORED.of(ctx.options) is not None:
        kept = _within(units, STORED.of(ctx.options))
    else:
        kept = {kind: units.best(kind, units.count(kind, FP16_RATIO.of(ctx.options))) for kind in units.scores}
    for kind, setting in (("heads", ATTN_THRESHOLD), ("neurons", MLP_THRESHOLD)):
        scores, threshold = units.scores[kind], setting.of(ctx.options)
        if threshold and len(kept[kind]):  # harmful units have negative scores; without a threshold they may be kept
            kept[kind] = kept[kind][scores[kept[kind]] >= threshold * scores.max()]
    return _split_layers(units, kept), _notes(kept)


def _split_layers(units: Units, kept: dict[str, torch.Tensor]) -> dict[str, LayerPlan]:
    masks = units.masks(kept)
    return {fqn: split_layer(masks.get(fqn)) for fqn in units.ctx.shapes}


def _within(units: Units, stored_bits: float) -> dict[str, torch.Tensor]:
    """The most heads, and neurons by the same share, that store no more; then neurons for what a head leaves over."""
    shapes, heads, neurons = units.ctx.shapes, len(units.scores["heads"]), len(units.scores["neurons"])
    room = bits_within(shapes, stored_bits)

    def kept(of_heads: int, of_neurons: int) -> dict[str, torch.Tensor]:
        return {"heads": units.best("heads", of_heads), "neurons": units.best("neurons", of_neurons)}

    def fits(of_heads: int, of_neurons: int) -> bool:
        layers = _split_layers(units, kept(of_heads, of_neurons))
        return sum(layer_bits(layers[fqn], shape) for fqn, shape in shapes.items()) <= room

    if not fits(0, 0):
        raise UserError(f"stored_bits={stored_bits:g} is less than NF4 alone stores; give 4.5 or more")
    of_heads = most(heads, lambda n: fits(n, n * neurons // heads))
    of_neurons = most(neurons, lambda n: fits(of_heads, n))
    return kept(of_heads, of_neurons)


@allocator("circuit_complement", options=(FP16_RATIO, FIRST, UNITS, BITS), exempt=True, keeps=True)
def circuit_complement(ctx: AllocContext):
    """The best (or the worst) share of heads and of neurons at 16 bits over ``bits`` bits of the common grid."""
    units = Units(ctx, "circuit_complement")
    worst, ratio, only = FIRST.of(ctx.options) == "worst", FP16_RATIO.of(ctx.options), UNITS.of(ctx.options)
    kept = {kind: units.best(kind, units.count(kind, ratio) if only in ("all", kind) else 0, worst)
            for kind in units.scores}
    return _grid_layers(ctx, units.masks(kept)), _notes(kept)


def _grid_layers(ctx: AllocContext, masks: dict[str, np.ndarray]) -> dict[str, LayerPlan]:
    plain = grid_plan(BITS.of(ctx.options), ctx.budget)
    return {fqn: replace(plain, keep=masks.get(fqn)) for fqn in ctx.shapes}


@allocator("heads_a_block", options=(HEADS, BITS), exempt=True, keeps=True)
def heads_a_block(ctx: AllocContext):
    """The best K heads of every block at 16 bits over ``bits`` bits of the common grid."""
    units, count = Units(ctx, "heads_a_block"), HEADS.of(ctx.options)
    _check_heads(ctx, count)
    kept, first = [], 0
    for one in units.attention:
        kept.append(first + first_k(units.scores["heads"][first:first + one.heads].float(), count))
        first += one.heads
    heads = {"heads": torch.cat(kept), "neurons": torch.zeros(0, dtype=torch.long)}
    return _grid_layers(ctx, units.masks(heads)), _notes(heads)


@allocator("heads_a_token", options=(HEADS, BITS), exempt=True, keeps=True)
def heads_a_token(ctx: AllocContext):
    """Any head may be chosen, so all attention is stored both ways: in the common grid, and at 16 bits."""
    count, plain = HEADS.of(ctx.options), grid_plan(BITS.of(ctx.options), ctx.budget)
    _check_heads(ctx, count)
    inside = {fqn for one in ctx.attention() for fqn in (one.q, one.k, one.v, one.o)}
    return {fqn: replace(plain, dynamic_heads=count if fqn in inside else 0) for fqn in ctx.shapes}, {}


def _check_heads(ctx: AllocContext, count: int) -> None:
    fewest = min(one.heads for one in ctx.attention())
    if count > fewest:
        raise UserError(f"--dynamic_heads {count} is more than the {fewest} heads of a block; give 1 to {fewest}")
