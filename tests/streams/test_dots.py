"""Gradients along directions, against plain gradients; and what their squares predict."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from core.architecture import find_linears
from core.forward import call, pad
from streams.dots import gradient_dots
from tests.tiny import calib_set, tiny_model


def directions(linears, forms: int, size: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {fqn: size * torch.randn(forms, lin.weight.numel(), generator=generator) for fqn, lin in linears.items()}


def test_they_are_the_gradients_of_labels_that_the_model_draws():
    model = tiny_model("llama")
    linears, tokens = find_linears(model)[0], calib_set().tokens[:3]
    moved = directions(linears, 2, 1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    dots = gradient_dots(model, linears, tokens, moved, draws=2, seed=7)
    assert dots.shape == (6, len(linears), 2)
    generator, row = torch.Generator().manual_seed(7), 0
    model.requires_grad_(True)
    for ids in tokens:
        logits = call(model, *pad([ids], "cpu"), last_only=False).logits[0].float()
        for _ in range(2):
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            grads = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"),
                                        [lin.weight for lin in linears.values()], retain_graph=True)
            for index, (fqn, grad) in enumerate(zip(linears, grads)):
                assert dots[row, index] == pytest.approx((moved[fqn] @ grad.flatten()).numpy(), rel=1e-3, abs=1e-5)
            row += 1
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())


def test_their_squares_predict_the_divergence_of_small_changes():
    """½ · mean of (Σ_l a)² is the KL divergence to second order, cross terms of linears included."""
    model = tiny_model("llama")
    linears, tokens = find_linears(model)[0], calib_set().tokens[:2]
    moved = directions(linears, 1, 3e-3)
    dots = gradient_dots(model, linears, tokens, moved, draws=600, seed=0)
    predicted = 0.5 * np.square(dots[:, :, 0].sum(1).astype(np.float64)).mean() * len(tokens)
    with torch.no_grad():
        def logp():
            return [call(model, *pad([ids], "cpu"), last_only=False).logits[0].log_softmax(-1) for ids in tokens]
        full = logp()
        for fqn, lin in linears.items():
            lin.weight += moved[fqn][0].reshape(lin.weight.shape)
        kl = sum(float((f.exp() * (f - q)).sum()) for f, q in zip(full, logp()))
    assert predicted == pytest.approx(kl, rel=0.25)
