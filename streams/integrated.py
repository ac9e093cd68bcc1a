"""Layer integrated gradients: how much of the answer's log-probability each output of a layer accounts for.

    A = (h − h°) · ∫₀¹ ∂f/∂h (h° + α (h − h°)) dα       [T, d], one document

h: the layer's output at the document, h°: at the baseline, every token's embedding replaced by one vector; f: the
answer's log-probability (streams/answers.py) with the layer's output put in; the integral by Gauss-Legendre.
Completeness: ΣA = f(h) − f(h°), whatever the layer; the gap between the two says whether the steps were enough.
Integrated gradients: Sundararajan et al., arXiv 1703.01365; as captum's LayerIntegratedGradients (a test holds the two
together), but what comes before the layer is not run again for every step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from core.forward import call, skip_to, watch
from core.types import ScoreContext
from streams.answers import Answers, embedded, log_probability


@dataclass(frozen=True)
class Attribution:
    """One layer's share, of one document."""

    values: torch.Tensor  # A float32 [T, d]
    difference: float  # f(h) − f(h°), nats a token
    gap: float  # ΣA − difference


def quadrature(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in (0, 1) and their weights, which sum to 1."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return (1 + points) / 2, weights / 2


class Paths:
    """A document's block outputs as they are and at the baseline, and the integrals over layers between the two."""

    def __init__(self, ctx: ScoreContext, asked: Answers, baseline: torch.Tensor, steps: int):
        self.ctx, self.asked, self.steps = ctx, asked, steps
        self.points, self.weights = quadrature(steps)
        self.room = max(1, ctx.param("batch_tokens") // asked.ids.shape[1])  # steps at a time
        self.empty = baseline.expand(*asked.ids.shape, -1)
        self.hidden, self.hidden_empty = {}, {}
        with torch.no_grad():
            with watch(ctx.blocks, self.hidden.__setitem__) as self.widths:
                call(ctx.model, asked.ids, asked.mask)
            with embedded(ctx.model, self.empty), watch(ctx.blocks, self.hidden_empty.__setitem__):
                call(ctx.model, asked.ids, asked.mask)

    def way(self) -> float:
        """f at the document − f at the baseline, nats a token."""
        with torch.no_grad():
            real = float(log_probability(self.ctx.model, self.asked))
            with embedded(self.ctx.model, self.empty):
                return real - float(log_probability(self.ctx.model, self.asked))

    def block(self, at: int) -> Attribution:
        """Of a block's output."""
        def put(value: torch.Tensor):
            return skip_to(self.ctx.blocks, at, value, self.widths[at])

        return self._integral(self.hidden[at][0], self.hidden_empty[at][0], put)

    def linears(self, at: int, linears: list[nn.Linear]) -> Iterator[Attribution]:
        """Of the output of each of a block's linears; what comes before the block is as the document has it."""
        real, empty = self._outputs(linears, None), self._outputs(linears, self.empty)
        for linear, output, output_empty in zip(linears, real, empty, strict=True):
            def put(value: torch.Tensor, linear=linear):
                return self._within(at, linear, value)

            yield self._integral(output, output_empty, put)

    def _outputs(self, linears: list[nn.Linear], embeddings: torch.Tensor | None) -> list[torch.Tensor]:
        seen: dict[nn.Linear, torch.Tensor] = {}
        hooks = [linear.register_forward_hook(lambda module, _args, out: seen.__setitem__(module, out.flatten(0, -2)))
                 for linear in linears]
        try:
            with torch.no_grad(), nullcontext() if embeddings is None else embedded(self.ctx.model, embeddings):
                call(self.ctx.model, self.asked.ids, self.asked.mask)
        finally:
            for hook in hooks:
                hook.remove()
        return [seen[linear] for linear in linears]

    @contextmanager
    def _within(self, at: int, linear: nn.Linear, value: torch.Tensor) -> Iterator[None]:
        """The blocks before as they were, the linear's output replaced."""
        # OPT hands some linears all tokens of all documents in one dimension
        hook = linear.register_forward_hook(lambda _m, _args, out: value.reshape(out.shape))
        before = nullcontext() if at == 0 else skip_to(
            self.ctx.blocks, at - 1, self.hidden[at - 1].expand(len(value), -1, -1), self.widths[at - 1])
        try:
            with before:
                yield
        finally:
            hook.remove()

    def _integral(self, real: torch.Tensor, empty: torch.Tensor, put: Callable) -> Attribution:
        """The integral along the straight line from ``empty`` to ``real`` [T, d]."""
        total, way = torch.zeros_like(real, dtype=torch.float32), (real - empty).float()
        for start in range(0, self.steps, self.room):
            points = torch.as_tensor(self.points[start:start + self.room], dtype=torch.float32, device=real.device)
            weights = torch.as_tensor(self.weights[start:start + self.room], dtype=torch.float32, device=real.device)
            value = (empty.float() + points[:, None, None] * way).to(real.dtype).requires_grad_()
            with torch.enable_grad(), put(value):
                f = log_probability(self.ctx.model, self.asked.repeated(len(points)))
                (grad,) = torch.autograd.grad((f * weights.to(f.device)).sum(), value)
            total += grad.float().sum(0)
        with torch.no_grad():
            ends = [self._at(end, put) for end in (real, empty)]
        values, difference = way * total, ends[0] - ends[1]
        return Attribution(values, difference, float(values.double().sum()) - difference)

    def _at(self, value: torch.Tensor, put: Callable) -> float:
        with put(value[None]):
            return float(log_probability(self.ctx.model, self.asked))
