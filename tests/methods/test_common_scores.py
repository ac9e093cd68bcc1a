"""The common rows of published methods: scores that one loud linear cannot own."""

import pytest
import torch

import methods  # noqa: F401  (registers)
from core.registry import METHODS, SCORERS
from core.types import LayerPlan
from quantization.solvers.rtn import dequantized
from streams.blocks import BlockStream, walk
from streams.hessians import factorise
from tests.tiny import calib_set, context, tiny_model

GROUP, LEVELS = 16, (2, 3, 4, 16)


def hessian_of(model, linears, fqn: str) -> torch.Tensor:
    spec = SCORERS.get("SPQR")
    ctx, caught = context(model, spec), {}
    walk(BlockStream(model, ctx.blocks, calib_set().tokens), ctx.linears, ctx.block_of, sequential=False,
         solve_one=lambda name, aid: caught.__setitem__(name, aid.hessian.clone()))
    return caught[fqn]


def test_spqr_scores_are_in_units_of_each_linears_threshold():
    """Against the formula; and a linear whose weights are a hundred times larger scores as before."""
    model, spec = tiny_model("llama"), SCORERS.get("SPQR")
    ctx = context(model, spec)
    scores = spec.fn(ctx)
    fqn = next(name for name in ctx.linears if name.endswith("down_proj"))
    weight = ctx.linears[fqn].weight.detach().float()
    factor = factorise(hessian_of(model, ctx.linears, fqn))
    moved = (weight - dequantized(weight, ctx.base(tuple(weight.shape)))).square() / factor.diagonal.square()
    unit = (weight.var(0) / factor.diagonal.square()).mean()
    assert torch.allclose(scores.values[fqn], moved / unit, rtol=1e-3, atol=1e-7)
    last = list(ctx.linears)[-1]  # nothing reads its output but the head
    with torch.no_grad():
        ctx.linears[last].weight.mul_(100.0)
    louder = spec.fn(context(model, spec))
    assert torch.allclose(louder.values[last], scores.values[last], rtol=0.05, atol=1e-4)


def test_slim_llm_gives_each_level_the_share_of_salience_that_it_loses():
    model, spec = tiny_model("llama"), SCORERS.get("SliM-LLM-loss")
    ctx = context(model, spec, group_size=GROUP, levels=LEVELS)
    scores = spec.fn(ctx)
    assert scores.levels == LEVELS and METHODS.get("SliM-LLM").scorer == "SliM-LLM-loss"
    for value in scores.values.values():
        assert value.shape == (4,) and value[3] == 0 and value[0] > value[1] > value[2] > 0
    fqn = next(iter(ctx.linears))
    weight, factor = ctx.linears[fqn].weight.detach(), factorise(hessian_of(model, ctx.linears, fqn))
    salience = weight.square() / factor.diagonal.square()
    lost = (weight - dequantized(weight, LayerPlan(3, GROUP))).square() / factor.diagonal.square()
    assert float(scores.values[fqn][1]) == pytest.approx(float(lost.sum() / salience.sum()), rel=1e-3)
    with torch.no_grad():
        ctx.linears[list(ctx.linears)[-1]].weight.mul_(100.0)
    louder = spec.fn(context(model, spec, group_size=GROUP, levels=LEVELS))
    last = list(ctx.linears)[-1]
    assert torch.allclose(louder.values[last], scores.values[last], rtol=0.02)
