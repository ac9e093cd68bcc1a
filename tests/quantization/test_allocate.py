"""Allocators: budgets met from below, optimal against brute force, deterministic, ties not to the earliest."""

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quantization  # noqa: F401  (registers)
from core.errors import BudgetError, UserError
from core.registry import ALLOCATORS
from core.types import Budget, LayerPlan, Scores
from quantization.allocators import ranking
from quantization.allocators.common import AllocContext, positive_weights
from quantization.allocators.knapsack import lagrangian, solve
from quantization.allocators.native import _searched, ranked
from quantization.allocators.ranking import first_k, keep_masks, spread_key, spread_order
from quantization.bits import achievable, check_budget, layer_bits, make_plan


def shapes_of(blocks: int) -> tuple[dict, dict]:
    """Linears of a small model: seven a block, widths 64 and 128."""
    per = {"q": (64, 64), "k": (16, 64), "v": (16, 64), "o": (64, 64), "gate": (128, 64), "up": (128, 64),
           "down": (64, 128)}
    shapes = {f"m.{b}.{n}": s for b in range(blocks) for n, s in per.items()}
    return shapes, {f: int(f.split(".")[1]) for f in shapes}


def problem(avg_bits: float, seed: int, unit: str = "nats", *, blocks: int = 12, granularity: str = "layer",
            tolerance=0.01) -> AllocContext:
    shapes, block_of = shapes_of(blocks)
    rng = np.random.default_rng(seed)
    per_block = rng.normal(size=blocks) if unit == "z" else rng.gamma(1.0, size=blocks)
    if granularity == "element":
        values = {f: torch.tensor(rng.random(s), dtype=torch.float32) for f, s in shapes.items()}
    elif granularity == "channel":
        values = {f: torch.tensor(rng.random(s[1]), dtype=torch.float32) for f, s in shapes.items()}
    elif granularity == "line":  # rows of the inputs of attention, columns of the rest
        values = {f: torch.tensor(rng.random((s[0], 1) if f[-1] in "qkv" else (1, s[1])), dtype=torch.float32)
                  for f, s in shapes.items()}
    else:
        values = {f: torch.tensor(per_block[b], dtype=torch.float32) for f, b in block_of.items()}
    budget = Budget(avg_bits, group_size=64, tolerance=tolerance)
    table = {f: [r * c * 4.0**-b * rng.uniform(0.5, 2) if b < 16 else 0.0 for b in budget.levels]
             for f, (r, c) in shapes.items()}
    return AllocContext(shapes, block_of, budget=budget, scores=Scores(granularity, values, unit),
                        distortion=lambda: table)


@settings(max_examples=40, deadline=None)
@given(st.floats(2.4, 8.0), st.integers(0, 1000),
       st.sampled_from(("uniform", "knapsack", "topk_keep", "channel", "line")))
def test_budget_met_from_below_and_twice_the_same(avg_bits, seed, kind):
    granularity = {"topk_keep": "element", "channel": "channel", "line": "line"}.get(kind, "layer")
    name = "topk_keep" if kind in ("channel", "line") else kind
    tolerance = 0.05 if kind in ("channel", "line") else 0.01  # a whole column of a small linear is a coarse step
    plans = []
    for _ in range(2):
        ctx = problem(avg_bits, seed, granularity=granularity, tolerance=tolerance)
        layers, notes = ALLOCATORS.get(name).fn(ctx)
        plan = make_plan(layers, ctx.shapes, (0, 0), notes=notes)
        check_budget(plan, ctx.budget, kind)
        plans.append(plan)
    assert plans[0].stored_bits == plans[1].stored_bits
    for fqn, layer in plans[0].layers.items():
        other = plans[1].layers[fqn]
        assert layer.bits == other.bits and (layer.keep is None or np.array_equal(layer.keep, other.keep))


@pytest.mark.parametrize("name", ("uniform", "knapsack", "topk_keep"))
def test_impossible_budget_prints_the_achievable_range(name):
    ctx = problem(2.0, 0, granularity="element" if name == "topk_keep" else "layer")
    low, high = achievable(ctx.shapes, ctx.budget)
    with pytest.raises(BudgetError, match=rf"achievable here: {low:.4f} to {high:.4f}"):
        ALLOCATORS.get(name).fn(ctx)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_knapsack_equals_brute_force(seed, items):
    rng = np.random.default_rng(seed)
    cost = np.sort(rng.integers(1, 60, (items, 4)), axis=1) + np.arange(4)
    loss = -np.sort(-rng.random((items, 4)), axis=1)
    capacity = int(cost[:, 0].sum() + rng.integers(0, cost[:, -1].sum() - cost[:, 0].sum() + 1))
    choice, gap = solve(loss, cost, capacity, slack=capacity + 1)
    best = min(sum(loss[i, c] for i, c in enumerate(cs)) for cs in itertools.product(range(4), repeat=items)
               if sum(cost[i, c] for i, c in enumerate(cs)) <= capacity)
    used = cost[np.arange(items), choice].sum()
    assert used <= capacity and loss[np.arange(items), choice].sum() == pytest.approx(best, rel=1e-6)
    assert gap <= 1e-5
    greedy, bound = lagrangian(loss, cost, capacity)
    assert bound <= best + 1e-9 <= loss[np.arange(items), greedy].sum() + 1e-8


def test_uniform_spreads_what_is_left_and_differs_by_one_level():
    ctx = problem(3.75, 0)
    layers, _ = ALLOCATORS.get("uniform").fn(ctx)
    assert {layer.bits for layer in layers.values()} == {3, 4}
    raised = {ctx.block_of[f] for f, layer in layers.items() if layer.bits == 4}
    assert len(raised) >= 10  # spread over the blocks, not the first ones


def test_higher_scores_get_more_bits():
    ctx = problem(4.0, 3, unit="z")
    layers, notes = ALLOCATORS.get("knapsack").fn(ctx)
    z = np.array([float(ctx.scores.values[f"m.{b}.q"]) for b in range(12)])
    bits = np.array([np.mean([layers[f].bits for f in ctx.shapes if ctx.block_of[f] == b]) for b in range(12)])
    assert np.corrcoef(z, bits)[0, 1] > 0.8 and notes["optimality_gap"] < 1e-3


def test_level_aware_scores_are_used_as_losses():
    ctx = problem(4.0, 0)
    values = {f: torch.tensor([r * c * 4.0**-b for b in ctx.budget.levels]) for f, (r, c) in ctx.shapes.items()}
    ctx.scores, ctx.distortion = Scores("linear", values, "loss", levels=ctx.budget.levels), None
    layers, _ = ALLOCATORS.get("knapsack").fn(ctx)
    check_budget(make_plan(layers, ctx.shapes, (0, 0), notes={}), ctx.budget, "x")
    ctx.scores = Scores("linear", {f: v[:2] for f, v in values.items()}, "loss", levels=(2, 3))
    with pytest.raises(UserError, match="hold losses at levels"):
        ALLOCATORS.get("knapsack").fn(ctx)


def test_topk_keeps_the_highest_elements():
    ctx = problem(3.6, 1, granularity="element")
    layers, notes = ALLOCATORS.get("topk_keep").fn(ctx)
    masks = {f: np.zeros(ctx.shapes[f], bool) if layer.keep is None else layer.keep for f, layer in layers.items()}
    kept, rest = (np.concatenate([ctx.scores.values[f].numpy()[mask == flag] for f, mask in masks.items()])
                  for flag in (True, False))
    assert len(kept) == notes["kept"] > 0 and kept.min() >= rest.max()


def test_native_forms():
    shapes, block_of = shapes_of(30)
    scores = Scores("layer", {f: torch.tensor(float(b)) for f, b in block_of.items()}, "z")
    ctx = AllocContext(shapes, block_of, budget=Budget(0.0, group_size=64), scores=scores)
    layers, notes = ALLOCATORS.get("top_fraction").fn(ctx)
    assert notes["high_blocks"] == list(range(22, 30))  # ceil(7.5)
    ctx.options = {"total": 8}
    layers, notes = ALLOCATORS.get("keep_edges_topk").fn(ctx)
    assert notes["kept_blocks"] == [0, 1, 24, 25, 26, 27, 28, 29]
    assert layers["m.0.q"].bits == 16 and layers["m.5.q"].bits == 4
    ctx.options = {"others": 8}
    assert len(ALLOCATORS.get("keep_edges_topk").fn(ctx)[1]["kept_blocks"]) == 12
    plan = make_plan(ALLOCATORS.get("top_fraction").fn(ctx)[0], shapes, (0, 0), notes={})
    assert plan.avg_bits > 4 + 64 / 128  # float32 scale and zero are counted: never the nominal bits
    with pytest.raises(UserError, match="ranks decoder blocks"):
        ALLOCATORS.get("top_fraction").fn(problem(4.0, 0, granularity="element"))


def test_balanced_gives_as_many_groups_up_as_down():
    shapes, block_of = shapes_of(2)
    rng = np.random.default_rng(0)
    values = {f: torch.tensor(rng.random((1, -(-s[1] // 16))), dtype=torch.float32) for f, s in shapes.items()}
    budget = Budget(3.5, group_size=16)
    ctx = AllocContext(shapes, block_of, budget=budget, scores=Scores("group", values, "salience"), options={"bits": 3})
    for fqn, layer in ALLOCATORS.get("balanced").fn(ctx)[0].items():
        assert (layer.group_bits == 4).sum() == (layer.group_bits == 2).sum() > 0
        assert layer.group_bits[int(values[fqn][0].argmax())] == 4


def test_all_zero_scores_do_not_pick_the_earliest_blocks():
    """The script's oracle on 32 documents: Δ all zero, ties by index kept blocks 0 to 9."""
    assert ranked(np.zeros(32))[:4] == [0, 16, 8, 24]
    assert sorted(spread_order(30)) == list(range(30))


def shares_off(positions: np.ndarray, starts: np.ndarray, total: int) -> float:
    """By how many weights the parts of the model that begin at ``starts`` get more or less than their share."""
    widths = np.diff([*starts, total])
    return float(np.abs(np.bincount(np.searchsorted(starts, positions, "right") - 1, minlength=len(starts))
                        - len(positions) * widths / total).max())


@pytest.mark.parametrize("name", ("topk_keep", "global_topk"))
def test_equal_weights_are_kept_all_over_the_model(name):
    """A blind scorer: no block, no linear, no row and no column of a linear is preferred."""
    ctx = problem(3.6, 1, granularity="element")
    ctx.scores = Scores("element", {f: torch.zeros(s) for f, s in ctx.shapes.items()}, "nats")
    ctx.options = {"bits": 3, "ratio": 0.02}
    layers, notes = ALLOCATORS.get(name).fn(ctx)
    assert ALLOCATORS.get(name).version == 2 and set(layers) == set(ctx.shapes)
    share = notes["kept"] / sum(r * c for r, c in ctx.shapes.values())
    for fqn, layer in layers.items():
        assert abs(layer.keep.sum() - share * layer.keep.size) <= 3, fqn
        rows, columns = layer.keep.sum(1), layer.keep.sum(0)
        assert rows.max() <= share * layer.keep.shape[1] + 3 and columns.max() <= share * layer.keep.shape[0] + 3, fqn


def test_whole_rows_and_columns_are_kept_best_first():
    ctx = problem(3.6, 1, granularity="line", tolerance=0.05)
    layers, notes = ALLOCATORS.get("topk_keep").fn(ctx)
    kept, dropped = [], []
    for fqn, layer in layers.items():
        value = ctx.scores.values[fqn]
        keep = np.zeros(ctx.shapes[fqn], bool) if layer.keep is None else layer.keep
        along = keep[:, 0] if value.shape[1] == 1 else keep[0]
        assert np.array_equal(keep, np.broadcast_to(along[:, None] if value.shape[1] == 1 else along, keep.shape))
        kept += value.flatten()[along].tolist()
        dropped += value.flatten()[~along].tolist()
    assert len(kept) == notes["kept"] > 0 and min(kept) >= max(dropped)


def test_equal_columns_are_kept_all_over_the_model():
    ctx = problem(3.6, 1, granularity="channel", tolerance=0.05)
    ctx.scores = Scores("channel", {f: torch.ones(s[1]) for f, s in ctx.shapes.items()}, "nats")
    layers, notes = ALLOCATORS.get("topk_keep").fn(ctx)
    kept = {f: 0 if layer.keep is None else int(layer.keep[0].sum()) for f, layer in layers.items()}
    share = notes["kept"] / sum(cols for _, cols in ctx.shapes.values())
    assert sum(kept.values()) == notes["kept"] > 0
    assert all(abs(kept[f] - share * cols) <= 3 for f, (_, cols) in ctx.shapes.items())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 40), st.integers(0, 2**16), st.booleans())
def test_a_ranking_is_by_score_and_each_prefix_is_a_ranking(count, different, seed, whole):
    """Among equals as few different values as wanted; negative scores and both zeros among them."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-1 if whole else 0, different, count).astype(np.float32) * rng.choice([-1.0, 1.0])
    flat, order = torch.tensor(scores), first_k(torch.tensor(scores), count).numpy()
    keys = spread_key(np.arange(count))
    assert sorted(order) == list(range(count)) and len(set(keys.tolist())) == count
    assert all((-scores[a], keys[a]) < (-scores[b], keys[b]) for a, b in itertools.pairwise(order))
    for k in {0, 1, count // 3, count - 1}:
        assert first_k(flat, k).tolist() == order[:k].tolist()


@pytest.mark.parametrize("width", (576, 1000, 1024, 4096))
def test_every_prefix_of_equal_scores_is_spread(width):
    """Over twelve blocks, over rows and over columns, for all weights and for those of every third row alone."""
    total = 96 * width
    for ties in (np.arange(total), np.flatnonzero(np.arange(total) // width % 3 == 0)):
        scores = np.zeros(total, dtype=np.float32)
        scores[ties] = 1.0
        order = first_k(torch.tensor(scores), len(ties)).numpy()
        for k in (12, 100, len(ties) // 50, len(ties) // 3):
            ranks = np.searchsorted(ties, order[:k])
            assert shares_off(ranks, np.arange(12) * len(ties) // 12, len(ties)) <= 5
            columns = np.bincount(order[:k] % width, minlength=width)
            assert columns.max() <= 2.5 * k / width + 3


def test_signed_scores_need_the_unit_z():
    values = {"a": torch.tensor(-1.0), "b": torch.tensor(1.0)}
    np.testing.assert_allclose(positive_weights(Scores("layer", values, "z"), ["a", "b"]), np.exp([-1, 1]))
    with pytest.raises(UserError, match="only unit 'z' may be signed"):
        positive_weights(Scores("layer", values, "nats"), ["a", "b"])
    values = {"a": torch.tensor(0.0), "b": torch.tensor(2.0)}
    assert positive_weights(Scores("layer", values, "n"), ["a", "b"]).tolist() == [0.002, 2.0]


@settings(max_examples=40, deadline=None)
@given(st.floats(2.6, 7.5), st.integers(0, 1000), st.sampled_from(("global_topk", "flat_raised", "slim")))
def test_published_forms_are_filled_to_the_budget(target, seed, kind):
    """One scale a row: within a hundredth of a bit below the target, kept weights and their index included."""
    ctx = problem(target, seed, granularity="element")
    options = {"global_topk": {"bits": int(target), "search": "published"}, "flat_raised": {},
               "slim": {"group": 128, "form": "slim"}}[kind]
    ctx = replace(ctx, options=options | {"target": target})
    layers, notes = ALLOCATORS.get("global_topk" if kind == "global_topk" else "flat_raised").fn(ctx)
    plan = make_plan(layers, ctx.shapes, (0, 0), notes=notes)
    if kind == "global_topk":
        check_budget(plan, ctx.budget, kind)
        kept = {f: torch.tensor(one.keep) for f, one in layers.items() if one.keep is not None}
        if kept:  # the grid alone may come as near to the target as the tolerance asks
            best = min(float(ctx.scores.values[f][keep].min()) for f, keep in kept.items())
            assert best >= max(float(ctx.scores.values[f][~keep].max()) for f, keep in kept.items())
        return
    assert plan.avg_bits <= target and {one.group_size for one in layers.values()} == (
        {128} if kind == "slim" else {64, 128})
    levels = sorted({one.bits for one in layers.values()})
    assert len(levels) == 1 or (len(levels) == 2 and levels[1] - levels[0] == 1)
    if kind == "flat_raised":  # of the smallest linear, one more level would not have fitted
        assert target - plan.avg_bits < 0.02
    if kind == "slim":  # whatever the search gives
        lower = {f: replace(one, group_bits=np.array([max(1, one.bits - 1)], dtype=np.uint8))
                 for f, one in layers.items()}
        assert make_plan(lower, ctx.shapes, (0, 0), notes={}).avg_bits <= target


@pytest.mark.parametrize("name", ("global_topk", "flat_raised"))
def test_a_target_that_no_bits_meet_is_refused(name):
    ctx = replace(problem(2.3, 0, granularity="element"), options={"target": 2.01, "bits": 2})
    with pytest.raises(BudgetError, match="--avg_bits"):
        ALLOCATORS.get(name).fn(ctx)


def test_mappings_from_scores_to_weights():
    """Ranks see the order alone; relative errors are free of a linear's size."""
    names = ["a", "b", "c", "d"]
    scores = Scores("layer", {n: torch.tensor(v) for n, v in zip(names, (0.1, 5.0, 5.0, -3.0))}, "z")
    ranks = positive_weights(scores, names, ranks=True)
    wild = Scores("layer", {n: torch.tensor(v) for n, v in zip(names, (0.1, 900.0, 900.0, -1e6))}, "z")
    assert np.allclose(ranks, positive_weights(wild, names, ranks=True))
    assert ranks[1] == ranks[2] > ranks[0] > ranks[3] and np.log(ranks).sum() == pytest.approx(0, abs=0.2)
    assert np.allclose(positive_weights(scores, names), np.exp([0.1, 5.0, 5.0, -3.0]))


@pytest.mark.parametrize("mapping", ("scores", "ranks", "relative"))
def test_every_mapping_meets_the_budget_and_decides_otherwise(mapping):
    ctx = problem(4.4, 3, unit="z")
    sizes = {f: 100.0 * (i % 7 + 1) for i, f in enumerate(ctx.shapes)}
    ctx = replace(ctx, options={"mapping": mapping}, energy=lambda: sizes)
    layers, notes = ALLOCATORS.get("knapsack").fn(ctx)
    check_budget(make_plan(layers, ctx.shapes, (0, 0), notes=notes), ctx.budget, mapping)
    plain, _ = ALLOCATORS.get("knapsack").fn(replace(ctx, options={}))
    assert (layers == plain) == (mapping == "scores")


def test_relative_errors_do_not_see_the_size_of_the_weights():
    ctx = problem(4.4, 3, unit="z")
    table, sizes = ctx.distortion(), {f: 10.0 for f in ctx.shapes}
    loud = {f: [100.0 * e for e in row] if "down" in f else row for f, row in table.items()}
    both = [ALLOCATORS.get("knapsack").fn(replace(ctx, options={"mapping": "relative"}, distortion=lambda t=t: t,
                                                  energy=lambda s=s: s))[0]
            for t, s in ((table, sizes), (loud, {f: 1000.0 if "down" in f else 10.0 for f in ctx.shapes}))]
    assert both[0] == both[1]


@pytest.mark.parametrize("width", (576, 640, 1536))
@pytest.mark.parametrize("bits", (2, 3))
def test_no_search_stores_more_than_is_counted_for_a_slim_plan(width, bits):
    """Every balanced choice of groups, a ragged last one among those that lose a bit too."""
    layer = LayerPlan(bits, 128, form="slim")
    most, groups = layer_bits(_searched(layer, width), (8, width)), -(-width // 128)
    for pairs in range(groups // 2 + 1):
        for up in itertools.combinations(range(groups), pairs):
            for down in itertools.combinations([g for g in range(groups) if g not in up], pairs):
                own = np.full(groups, bits, dtype=np.uint8)
                own[list(up)] += 1
                own[list(down)] -= 1
                assert layer_bits(replace(layer, group_bits=own), (8, width)) <= most


@pytest.mark.parametrize("name", ("uniform", "knapsack"))
def test_tied_linears_get_the_same_bits_at_the_same_budget(name):
    ctx = problem(3.4, 3, tolerance=0.05)
    renamed = {f: f"{f}_proj" for f in ctx.shapes}
    of = {renamed[f]: value for f, value in ctx.scores.values.items()}
    table = {renamed[f]: errors for f, errors in ctx.distortion().items()}
    ctx = replace(ctx, shapes={renamed[f]: s for f, s in ctx.shapes.items()}, scores=Scores("layer", of, "nats"),
                  block_of={renamed[f]: b for f, b in ctx.block_of.items()}, distortion=lambda: table,
                  options={"tie": "fused"})
    layers, _ = ALLOCATORS.get(name).fn(ctx)
    free, _ = ALLOCATORS.get(name).fn(replace(ctx, options={}))
    for b in range(12):
        for kind in ("qkv", ("gate", "up")):
            assert len({layers[f"m.{b}.{part}_proj"].bits for part in kind}) == 1
    assert any(len({free[f"m.{b}.{part}_proj"].bits for part in "qkv"}) > 1 for b in range(12))
    for plan in (layers, free):
        check_budget(make_plan(plan, ctx.shapes, (0, 0), {}), ctx.budget, name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 2**16),
       st.floats(0, 1), st.integers(1, 300))
def test_scores_in_parts_rank_as_one_row(sizes, different, seed, share, piece):
    """Positions and masks, whatever the pieces, ties across parts among them."""
    rng = np.random.default_rng(seed)
    parts = [torch.tensor((rng.integers(-different, different, size) / 7).astype(np.float32)) for size in sizes]
    k = int(share * sum(sizes))
    before, ranking.PIECE = ranking.PIECE, piece
    try:
        best = first_k(parts, k)
    finally:
        ranking.PIECE = before
    assert best.tolist() == first_k(torch.cat(parts), k).tolist()
    flat, keys = torch.cat(parts).numpy(), spread_key(np.arange(sum(sizes)))
    assert best.tolist() == sorted(range(len(flat)), key=lambda i: (-flat[i], keys[i]))[:k]
    shapes = {str(i): (1, size) for i, size in enumerate(sizes)}
    flags = np.zeros(len(flat), bool)
    flags[best.numpy()] = True
    masks = keep_masks(shapes, best, sizes)
    for (name, _), own in zip(shapes.items(), np.split(flags, np.cumsum(sizes)[:-1])):
        assert (masks[name][0] == own).all() if own.any() else name not in masks


@pytest.mark.parametrize("blind", [False, True])
def test_ranking_needs_less_memory_than_the_scores(blind):
    """Two in a hundred of 64 million weights, also where all scores are the same."""
    part = torch.zeros(8_000_000) if blind else torch.rand(8_000_000, generator=torch.Generator().manual_seed(0))
    tracemalloc.start()
    try:
        best = first_k([part] * 8, 1_280_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(best) == 1_280_000 and peak < 64_000_000 * 4
