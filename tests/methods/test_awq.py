"""Salient channels: means against a plain loop over documents, and the columns that are kept."""

import numpy as np
import pytest
import torch

import methods  # noqa: F401  (registers)
from core.architecture import find_linears
from core.errors import UserError
from core.registry import ALLOCATORS, METHODS, SCORERS
from core.types import Budget, Scores
from quantization.allocators.common import AllocContext
from tests.tiny import calib_set, context, tiny_model


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("family", ["llama", "opt"])
@torch.no_grad()
def test_scores_are_mean_inputs_of_every_document_read_alone(family, published):
    model, calib = tiny_model(family), calib_set()
    ctx = context(model, SCORERS.get("AWQ-channel"), calib, published=published)
    scores = SCORERS.get("AWQ-channel").fn(ctx)
    assert scores.granularity == "channel"
    for fqn, linear in list(find_linears(model)[0].items())[::5]:
        seen = []
        hook = linear.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        for tokens in calib.tokens:
            model(torch.as_tensor(tokens)[None])
        hook.remove()
        inputs = [x.reshape(-1, linear.in_features).abs().double() for x in seen]
        want = torch.stack([x.mean(0) for x in inputs]).mean(0) if published else torch.cat(inputs).mean(0)
        torch.testing.assert_close(scores.values[fqn].double(), want, rtol=1e-4, atol=1e-6)


def test_one_percent_of_each_linears_channels_is_kept():
    spec = METHODS.get("W4A4-native")
    assert spec.options == {"bits": 4, "group": 128} and spec.native and spec.quantizer == "rtn-full-range"
    shapes = {"a": (4, 576), "b": (3, 60)}
    values = {"a": torch.arange(576.0), "b": torch.ones(60)}
    ctx = AllocContext(shapes, {"a": 0, "b": 0}, budget=Budget(0.0), scores=Scores("channel", values, "mean |x|"),
                       options=spec.options | {"salient": 0.01})
    layers, _ = ALLOCATORS.get("salient_columns").fn(ctx)
    assert np.flatnonzero(layers["a"].keep[0]).tolist() == [571, 572, 573, 574, 575]
    assert layers["a"].keep.all(0).sum() == 5
    assert layers["b"].keep is None and (layers["a"].bits, layers["a"].group_size) == (4, 128)
    with pytest.raises(UserError, match="salient_columns keeps input channels; combine it with a channel scorer"):
        ALLOCATORS.get("salient_columns").fn(AllocContext(shapes, {"a": 0, "b": 0}, budget=Budget(0.0),
                                                          scores=Scores("layer", values, "z")))
