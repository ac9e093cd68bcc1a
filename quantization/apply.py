"""Put a plan into a model, linear by linear, and take it out again.

The weights as loaded stay on the CPU once; a quantized weight always starts from them, never from the
previous plan, so the order of cells cannot matter.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from core.errors import UserError
from core.registry import QUANTIZERS
from core.types import Aid, Budget, CalibSet, LayerPlan, Plan, Stored
from quantization.solvers.grid import sixteen
from streams.blocks import BlockStream, walk


class Keeper:
    """Where the finished blocks of a solve outlive a kill.  This one forgets; the harness hands over one that does not.

    A block is its linears by name; ``values`` are the weights as the model holds them, in its own dtype, ``parts`` are left out.
    """

    def load(self, block: int) -> dict[str, Stored] | None:
        """A finished block, or None: it must be solved."""

    def save(self, block: int, found: dict[str, Stored]) -> None:
        """Keep a finished block."""


class Originals:
    """The weights as loaded, and the only way in which they are changed."""

    def __init__(self, linears: dict[str, nn.Linear]):
        self.linears = linears
        self.weights = {fqn: lin.weight.detach().to("cpu", copy=True) for fqn, lin in linears.items()}
        self.changed: set[str] = set()
        self.holds: str | None = None  # digest of what the linears hold now, for who wants to skip doing it again

    def apply(self, plan: Plan, quantizer: str | None, step=lambda done, total: None) -> None:
        """Make the model hold the plan's weights; linears the plan does not name are as loaded."""
        if plan.layers and quantizer is None:
            raise ValueError("a plan with quantized linears needs a quantizer")
        self.restore(self.changed - set(plan.layers))
        self.write(plan.layers, quantizer, step)

    @torch.no_grad()
    def write(self, layers: dict[str, LayerPlan], quantizer: str | None, step=lambda done, total: None) -> None:
        """Quantize the linears named, always from the weights as loaded."""
        self.holds = None
        for done, (fqn, layer) in enumerate(layers.items(), 1):
            self._write(fqn, QUANTIZERS.get(quantizer).fn(self._on_device(fqn), layer))
            self.changed.add(fqn)
            step(done, len(layers))

    def restore(self, names: set[str] | None = None) -> None:
        """Make the linears named (all, if none are) as they were loaded."""
        self.holds = None
        for fqn in set(self.changed if names is None else names):
            self._write(fqn, self.weights[fqn])
            self.changed.discard(fqn)

    @torch.no_grad()
    def solve(self, layers: dict[str, LayerPlan], quantizer: str, *, model, blocks, block_of: dict[str, int], calib: CalibSet | None = None,
              fisher: dict[str, torch.Tensor] | None = None, options: dict | None = None, step=lambda done, total: None,
              see: Callable[[str, Stored], None] = lambda fqn, found: None, keeper: Keeper | None = None) -> dict[str, Stored]:
        """Quantize the linears named by a quantizer that reads data; returns what came out, without the weights (``see`` gets all of it).

        Always from the weights as loaded; linears at 16 bits and those not named are as loaded.  Quantizers that
        need a Hessian see the inputs that the blocks before, already quantized, give.  Blocks that ``keeper`` has are
        taken from it (``see`` hears nothing of them), all others are handed to it.
        """
        spec, out = QUANTIZERS.get(quantizer), {}
        self.restore()
        todo = {fqn: self.linears[fqn] for fqn, layer in layers.items() if layer.bits < 16 or layer.group_bits is not None}
        for fqn in (f for f in layers if f not in todo):
            self._write(fqn, sixteen(self._on_device(fqn)))
            self.changed.add(fqn)
            out[fqn] = Stored(torch.empty(0), layers[fqn])

        def solve_one(fqn: str, aid: Aid) -> torch.Tensor:
            given = replace(aid, options=options or {}, fisher=None if fisher is None else fisher[fqn])
            found = spec.fn(self._on_device(fqn).float(), layers[fqn], given)
            if not torch.isfinite(found.values).all():
                raise UserError(f"{quantizer} gave {fqn} weights that are not finite; use more calibration tokens (--calib_tokens) or more bits")
            self.changed.add(fqn)
            see(fqn, found)
            out[fqn] = replace(found, values=torch.empty(0), parts={})
            return found.values.to(self.linears[fqn].weight.dtype)

        pieces = _Pieces(self, todo, block_of, keeper or Keeper(), out)
        if set(spec.needs) & {"hessian", "inputs"}:
            walk(BlockStream(model, blocks, calib.tokens), todo, block_of, solve_one, sequential=spec.sequential, progress=step,
                 resume=pieces.resume, after=pieces.after)
        else:
            pieces.each_alone(solve_one, step)
        return {fqn: out[fqn] for fqn in layers}

    def _on_device(self, fqn: str) -> torch.Tensor:
        return self.weights[fqn].to(self.linears[fqn].weight.device)

    def _write(self, fqn: str, value: torch.Tensor) -> None:
        self.linears[fqn].weight.data.copy_(value)


@dataclass
class _Pieces:
    """The blocks of one solve on their way from and to a keeper."""

    originals: Originals
    todo: dict[str, nn.Linear]
    block_of: dict[str, int]
    keeper: Keeper
    out: dict[str, Stored]  # filled here and by the solve

    def _inside(self, block: int) -> list[str]:
        return [fqn for fqn in self.todo if self.block_of[fqn] == block]

    def resume(self, block: int) -> bool:
        """Put a block that was solved before into the model; whether it was."""
        found = self.keeper.load(block)
        if found is None:
            return False
        for fqn in self._inside(block):
            self.originals._write(fqn, found[fqn].values)
            self.originals.changed.add(fqn)
            self.out[fqn] = replace(found[fqn], values=torch.empty(0))
        return True

    def after(self, block: int) -> None:
        """Keep a block as the model holds it now."""
        self.keeper.save(block, {fqn: replace(self.out[fqn], values=self.todo[fqn].weight.detach()) for fqn in self._inside(block)})

    def each_alone(self, solve_one: Callable[[str, Aid], torch.Tensor], step) -> None:
        """Solve linears that read no inputs, block by block so that a kill loses one block."""
        done = 0
        for block in sorted({self.block_of[fqn] for fqn in self.todo}):
            if self.resume(block):
                done += len(self._inside(block))
                step(done, len(self.todo))
                continue
            for fqn in self._inside(block):
                self.originals._write(fqn, solve_one(fqn, Aid(fqn)))
                done += 1
                step(done, len(self.todo))
            self.after(block)


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
