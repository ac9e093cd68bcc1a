"""Put a plan into a model, linear by linear, and take it out again.

The weights as loaded stay on the CPU once; a quantized weight always starts from them, never from the
previous plan, so the order of cells cannot matter.
"""

import torch
from torch import nn

from core.registry import QUANTIZERS
from core.types import Budget, LayerPlan, Plan


class Originals:
    """The weights as loaded, and the only way in which they are changed."""

    def __init__(self, linears: dict[str, nn.Linear]):
        self.linears = linears
        self.weights = {fqn: lin.weight.detach().to("cpu", copy=True) for fqn, lin in linears.items()}
        self.changed: set[str] = set()

    def apply(self, plan: Plan, quantizer: str | None, step=lambda done, total: None) -> None:
        """Make the model hold the plan's weights; linears the plan does not name are as loaded."""
        if plan.layers and quantizer is None:
            raise ValueError("a plan with quantized linears needs a quantizer")
        self.restore(self.changed - set(plan.layers))
        self.write(plan.layers, quantizer, step)

    @torch.no_grad()
    def write(self, layers: dict[str, LayerPlan], quantizer: str | None, step=lambda done, total: None) -> None:
        """Quantize the linears named, always from the weights as loaded."""
        for done, (fqn, layer) in enumerate(layers.items(), 1):
            self._write(fqn, QUANTIZERS.get(quantizer).fn(self._on_device(fqn), layer))
            self.changed.add(fqn)
            step(done, len(layers))

    def restore(self, names: set[str] | None = None) -> None:
        """Make the linears named (all, if none are) as they were loaded."""
        for fqn in set(self.changed if names is None else names):
            self._write(fqn, self.weights[fqn])
            self.changed.discard(fqn)

    def _on_device(self, fqn: str) -> torch.Tensor:
        return self.weights[fqn].to(self.linears[fqn].weight.device)

    def _write(self, fqn: str, value: torch.Tensor) -> None:
        self.linears[fqn].weight.data.copy_(value)


@torch.no_grad()
def distortion_table(weights: dict[str, torch.Tensor], budget: Budget, quantizer: str,
                     step=lambda done, total: None, device: torch.device | None = None) -> dict[str, list[float]]:
    """‖W − Q_b(W)‖² (squared Frobenius norm, float64 sum) of every linear at every level of the budget, ascending."""
    fn, table = QUANTIZERS.get(quantizer).fn, {}
    for done, (fqn, weight) in enumerate(weights.items(), 1):
        weight = weight.to(device) if device else weight
        row = []
        for level in sorted(budget.levels):
            delta = weight.float() - fn(weight, LayerPlan(level, budget.group_size, budget.scale_bits)).float()
            row.append(float(delta.square().sum(dtype=torch.float64)))
        table[fqn] = row
        step(done, len(weights))
    return table
