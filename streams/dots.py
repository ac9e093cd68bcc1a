"""What a change of the weights does to the loss, document by document: gradients along given directions.

    a_dlf = ⟨g_dl, Δ_lf⟩      g_dl = ∂/∂W_l of −Σ_t log p(y_t | x_<t),  y_t drawn from the model itself

With labels from the model, E[(Σ_l a_dl)²] / 2 is the second-order term of the KL divergence, summed over the tokens of
document d, between the model and the one whose linears are moved by Δ (the Fisher matrix is the Hessian of the KL).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from core.forward import call, device_of, pad
from core.placement import beside
from streams.gradients import DTYPES, each_gradient, ready


def gradient_dots(model: nn.Module, linears: Mapping[str, nn.Linear], tokens: Sequence[np.ndarray],
                  moved: Mapping[str, torch.Tensor], *, draws: int, seed: int, grad_dtype: str = "float32",
                  progress: Callable[[int, int], None] = lambda done, total: None) -> np.ndarray:
    """Return a_dlf, float32 [documents · draws, linears of ``moved``, forms].

    The directions lie beside the model on a GPU with four times their room, else the gradients come to the CPU.

    tokens: int64 [T] each; moved: Δ of every form, [forms, out · in], on the CPU; draws: labels drawn a document, from
    the seed.  The model is left as it was found.
    """
    names, device = list(moved), device_of(model)
    forms = len(next(iter(moved.values())))
    generator = torch.Generator().manual_seed(seed)
    row = 0

    def take(index: int, grad: torch.Tensor) -> None:
        along = moved[names[index]]
        dots[index][row] = along @ grad.to(along.device, along.dtype).flatten()

    weights = [linears[name].weight for name in names]
    places = beside(weights, forms * moved[names[0]].element_size())
    moved = {name: moved[name].to(place) for name, place in zip(names, places)}
    # by linear: what no token of a document reached stays 0
    dots = [torch.zeros(len(tokens) * draws, forms, device=moved[name].device) for name in names]
    with ready(model, weights, DTYPES[grad_dtype]), each_gradient(weights, take):
        for done, ids in enumerate(tokens):
            progress(done, len(tokens))
            logits = call(model, *pad([ids], device), last_only=False).logits[0].float()
            chances = logits.detach().softmax(-1).cpu()
            for draw in range(draws):
                labels = torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)
                cross_entropy(logits, labels, reduction="sum").backward(retain_graph=draw + 1 < draws)
                row += 1
    progress(len(tokens), len(tokens))
    return torch.stack([own.cpu() for own in dots], 1).numpy()
