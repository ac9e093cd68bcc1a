"""Allocators of the published forms; their rows are exempt from the budget and show their own true bits.

``top_fraction``     the top share of blocks at ``high`` bits, the rest at ``low`` (TAQ, TAQoS: 25 % at 8, rest 4).
``keep_edges_topk``  first and last blocks and the best others at 16 bits, the rest at ``low`` (TAQO).
``flat``             every linear alike: bits, group size (none = one scale a row), and how it is stored.
``global_topk``      the same, and the best ``ratio`` of all weights, over the whole model, kept at 16 bits (TaCQ); with
                     a ``target`` as many as it has room for.
``flat_within``      as flat, each linear at the most bits that fit below ``target``; the quantizer fills what is left.
``flat_raised``      as flat, at the bits that fit below ``target`` everywhere; then linears in spread order at one bit
                     more.
``salient_columns``  in every linear the best share of its input channels at 16 bits over a flat grid (W4A4).
``balanced``         per linear, as many column groups at N+1 bits as at N−1 (the allocation rule of SliM-LLM).
``bnb``              every linear as bitsandbytes stores it.
``none``             the model as it was loaded.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np

from core.errors import BudgetError, UserError
from core.lazy import torch
from core.registry import allocator
from core.settings import Setting
from core.storage import KEPT, SCALES, STORED_SCALES
from core.types import LayerPlan
from quantization.allocators.common import AllocContext, InOrder, keep_within, raised
from quantization.allocators.ranking import first_k, keep_masks, spread_order
from quantization.bits import bits_within, grid_plan, layer_bits, stored_grid, weights_of
from quantization.solvers.bnb import bnb_layer
from quantization.solvers.spqr import TARGET

SCRIPT_GROUP = 128  # the TAQ script's group size; scale and zero are float32 there, and counted here
BITS = Setting("bits", int, 3, "bits of every weight", low=2, high=8, flag=False)
GROUP = Setting("group", int, None, "input columns that share a scale (default: the whole row)", low=1, flag=False)
RATIO = Setting("ratio", float, 0.0035, "share of all weights that is kept at 16 bits", low=0, high=0.5, flag=False)
FRACTION = Setting("fraction", float, 0.25, "share of the blocks that gets high bits", low=0, high=1, flag=False)
HIGH = Setting("high", int, 8, "bits of the best blocks", low=2, high=8, flag=False)
LOW = Setting("low", int, 4, "bits of the other blocks", low=2, high=8, flag=False)
ROUNDING = Setting("rounding", str, "up", "how a share of the blocks becomes a number of them; round is the script's "
                   "first version", choices=("up", "round"), flag=False)
EDGES = Setting("edges", int, 2, "first and last blocks that stay at 16 bits", low=0, flag=False)
TOTAL = Setting("total", int, 8, "blocks that stay at 16 bits in all", low=0, flag=False)
OTHERS = Setting("others", int, None, "blocks besides the edges that stay at 16 bits, instead of total", low=0,
                 flag=False)
SALIENT = Setting("salient", float, 0.01, "share of each linear's input channels that stays at 16 bits", low=0, high=1,
                  flag=False)
PAIRS = Setting("pairs", float, 0.25, "share of a linear's column groups that gets a bit more, and a bit less", low=0,
                high=0.5, flag=False)


def _script(bits: int) -> LayerPlan:
    return LayerPlan(bits=bits, group_size=SCRIPT_GROUP, scale_bits=32, zero_bits=32)


def _scored(ctx: AllocContext, granularity: str, message: str) -> None:
    """Raise ``message`` and what the scorer gives unless it gives scores of this granularity."""
    given = "none" if ctx.scores is None else ctx.scores.granularity
    if given != granularity:
        raise UserError(f"{message}; this row's scores: {given}")


def block_scores(ctx: AllocContext) -> np.ndarray:
    """The score of each block, read back from its linears: float64 [blocks]."""
    _scored(ctx, "layer", "this allocation ranks decoder blocks; combine it with a block scorer such as TAQ or TAQO")
    scores = np.zeros(max(ctx.block_of.values()) + 1)
    for fqn, block in ctx.block_of.items():
        scores[block] = float(ctx.scores.values[fqn])
    return scores


def ranked(scores: np.ndarray) -> list[int]:
    """Blocks from the highest score down; equal scores in spread order."""
    position = {block: i for i, block in enumerate(spread_order(len(scores)))}
    return sorted(range(len(scores)), key=lambda b: (-scores[b], position[b]))


@allocator("top_fraction", options=(FRACTION, HIGH, LOW, ROUNDING), exempt=True)
def top_fraction(ctx: AllocContext):
    """ceil(fraction · blocks) best blocks, at least one, at ``high`` bits; the script's first version rounds."""
    scores = block_scores(ctx)
    exact = FRACTION.of(ctx.options) * len(scores)
    count = max(1, round(exact) if ROUNDING.of(ctx.options) == "round" else math.ceil(exact))
    best = set(ranked(scores)[:count])
    high, low = _script(HIGH.of(ctx.options)), _script(LOW.of(ctx.options))
    layers = {n: high if ctx.block_of[n] in best else low for n in ctx.shapes}
    return layers, {"high_blocks": sorted(best)}


@allocator("keep_edges_topk", options=(EDGES, LOW, TOTAL, OTHERS), exempt=True)
def keep_edges_topk(ctx: AllocContext):
    """First and last ``edges`` blocks at 16 bits, then the best others: ``total`` in all, or ``others`` more."""
    scores, edges, others = block_scores(ctx), EDGES.of(ctx.options), OTHERS.of(ctx.options)
    count = len(scores)
    whole = {b for b in (*range(edges), *range(count - edges, count)) if 0 <= b < count}
    more = max(0, TOTAL.of(ctx.options) - len(whole)) if others is None else others
    whole |= set([b for b in ranked(scores) if b not in whole][:more])
    untouched, low = LayerPlan(bits=16, group_size=SCRIPT_GROUP), _script(LOW.of(ctx.options))
    layers = {n: untouched if ctx.block_of[n] in whole else low for n in ctx.shapes}
    return layers, {"kept_blocks": sorted(whole)}


@allocator("balanced", options=(BITS, PAIRS), exempt=True)
def balanced(ctx: AllocContext):
    """Per linear: ``pairs`` of column groups with the highest score at N+1 bits and as many of the lowest at N−1."""
    _scored(ctx, "group", "balanced allocation needs group scores, such as those of SliM-LLM")
    base, share = BITS.of(ctx.options), PAIRS.of(ctx.options)
    layers = {}
    for name in ctx.shapes:
        per_group = ctx.scores.values[name].double().sum(0)
        pairs = min(int(share * len(per_group)), len(per_group) // 2)
        order = torch.sort(per_group, descending=True, stable=True).indices.numpy()
        bits = np.full(len(per_group), base, dtype=np.uint8)
        bits[order[:pairs]], bits[order[len(order) - pairs:]] = base + 1, base - 1
        layers[name] = replace(grid_plan(base, ctx.budget), group_bits=bits)
    return layers, {}


@allocator("none", exempt=True)
def none(ctx: AllocContext):
    """Quantize nothing."""
    return {}, {}


@allocator("flat", options=(BITS, GROUP, "scale_bits", "zero_bits", "form", "ordered"), exempt=True)
def flat(ctx: AllocContext):
    """The same for every linear, as a published method starts from it; its quantizer may add outliers or group bits."""
    return {n: _flat(ctx, shape) for n, shape in ctx.shapes.items()}, {}


def _flat(ctx: AllocContext, shape: tuple[int, int], **more) -> LayerPlan:
    """The options that are fields of a plan, or ``more`` in their place; no group = one scale a row."""
    if GROUP.of(ctx.options) and ctx.options.get("form") == "codebook":
        raise UserError("a codebook has one table a row and no groups; leave group out")
    named = {f.name: ctx.options[f.name] for f in fields(LayerPlan) if f.name in ctx.options}
    grid = stored_grid(BITS.default, GROUP.of(ctx.options) or shape[1], **STORED_SCALES[SCALES.of(ctx.options)])
    return replace(grid, **named | more)


@allocator("flat_within", options=(BITS, GROUP, TARGET, "form"), exempt=True)
def flat_within(ctx: AllocContext):
    """Every linear in a published form at ``bits``, or at fewer where these alone would store more than the target."""
    target, layers = TARGET.of(ctx.options), {}
    for name, shape in ctx.shapes.items():
        fits = (_flat(ctx, shape, bits=bits) for bits in range(BITS.of(ctx.options), 0, -1))
        layers[name] = next((one for one in fits if layer_bits(one, shape) <= target * math.prod(shape)), None)
        if layers[name] is None:
            raise BudgetError(f"{target} bits a weight cannot be met by this form, which stores more at 1 bit of the "
                              f"{list(shape)} linear {name}; raise --avg_bits")
    return layers, {}


@allocator("flat_raised", 2, options=(TARGET, GROUP, "form"), exempt=True)
def flat_raised(ctx: AllocContext):
    """A published form at one budget: every linear at N bits, and in spread order some at N + 1.

    What a search may add to a slim plan (16-bit means of 1-bit groups) is counted as if it did, so none stores more.
    """
    target, shapes, levels = TARGET.of(ctx.options), ctx.shapes, range(2, 8 if ctx.options.get("form") == "slim" else 9)
    cost = [{n: layer_bits(_searched(_flat(ctx, shape, bits=bits), shape[1]), shape) for n, shape in shapes.items()}
            for bits in levels]
    total = bits_within(shapes, target)
    if sum(cost[0].values()) > total:
        raise BudgetError(f"{target} bits a weight cannot be met by this form, which stores "
                          f"{sum(cost[0].values()) / weights_of(shapes):.4f} at 2 bits; raise --avg_bits")
    at = raised(shapes, cost, total)
    return {n: _flat(ctx, shape, bits=levels[at[n]]) for n, shape in shapes.items()}, {}


def _searched(layer: LayerPlan, width: int) -> LayerPlan:
    """The most that a slim plan may come to: half of its groups a bit lower, the last, which may be narrow, among them;
    as many higher.
    """
    if layer.form != "slim":
        return layer
    groups = -(-width // layer.group_size)
    bits = np.full(groups, layer.bits, dtype=np.uint8)
    bits[:groups // 2] += 1
    bits[groups - groups // 2:] -= 1
    return replace(layer, group_bits=bits)


@allocator("global_topk", 2, options=(BITS, GROUP, RATIO, TARGET, SCALES, KEPT), exempt=True, keeps=True,
           ranks=True)
def global_topk(ctx: AllocContext):
    """int(ratio · weights) best weights of the model, whatever linear they are in, kept at 16 or 8 bits over a flat
    grid.

    With a ``target`` of stored bits a weight: as many as it has room for, over the most bits up to ``bits`` that leave
    any.  Equal scores are taken in spread order.
    """
    _scored(ctx, "element", "global_topk keeps single weights; combine it with an element scorer such as TaCQ")
    if TARGET.of(ctx.options) is not None:
        return _filled(ctx, TARGET.of(ctx.options))
    sizes = [math.prod(shape) for shape in ctx.shapes.values()]
    best = first_k(InOrder(ctx), int(RATIO.of(ctx.options) * sum(sizes)))
    masks, layers = keep_masks(ctx.shapes, best, sizes), {n: _flat(ctx, shape) for n, shape in ctx.shapes.items()}
    return _keeping(ctx, layers, masks), {"kept": len(best)}


def _keeping(ctx: AllocContext, layers: dict[str, LayerPlan], masks: dict[str, np.ndarray]) -> dict[str, LayerPlan]:
    """The plans with these weights kept, at the bits of the row."""
    return {n: replace(layer, keep=masks.get(n), kept_bits=KEPT.of(ctx.options)) for n, layer in layers.items()}


def _filled(ctx: AllocContext, target: float):
    """A flat grid, and what the target leaves over spent on kept weights."""
    total = bits_within(ctx.shapes, target)
    for bits in range(BITS.of(ctx.options), 1, -1):
        layers = {n: _flat(ctx, shape, bits=bits) for n, shape in ctx.shapes.items()}
        spare = total - sum(layer_bits(layer, ctx.shapes[n]) for n, layer in layers.items())
        if spare >= 0:
            masks, notes = keep_within(ctx, spare, KEPT.of(ctx.options))
            return _keeping(ctx, layers, masks), notes
    raise BudgetError(f"{target} bits a weight cannot be met by 2 bits and their scales; raise --avg_bits")


@allocator("salient_columns", options=(BITS, GROUP, SALIENT), exempt=True, keeps=True)
def salient_columns(ctx: AllocContext):
    """int(salient · in) best input channels of every linear at 16 bits over a flat grid; of equal ones the first."""
    _scored(ctx, "channel", "salient_columns keeps input channels; combine it with a channel scorer such as "
                            "AWQ-channel")
    layers = {}
    for name, shape in ctx.shapes.items():
        count = int(SALIENT.of(ctx.options) * shape[1] + 1e-9)
        keep = np.zeros(shape, dtype=bool)
        keep[:, torch.sort(ctx.scores.values[name], descending=True, stable=True).indices[:count].numpy()] = True
        layers[name] = replace(_flat(ctx, shape), keep=keep if count else None)
    return layers, {}


@allocator("bnb", options=("kind",), exempt=True)
def bnb(ctx: AllocContext):
    """Every linear as bitsandbytes stores ``kind``: "nf4" (the default), "fp4" or "int8"."""
    return {name: bnb_layer(ctx.options.get("kind", "nf4"), shape) for name, shape in ctx.shapes.items()}, {}
