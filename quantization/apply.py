"""Put a plan into a model, linear by linear, and take it out again.

The weights as loaded stay on the CPU once; a quantized weight always starts from them, never from the
previous plan, so the order of cells cannot matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.errors import UserError
from core.lazy import torch
from core.registry import QUANTIZERS
from core.types import Aid, Budget, CalibSet, LayerPlan, Plan, Stored
from quantization.bits import grid_plan
from quantization.solvers.kept import sixteen, sixteen_bit

if TYPE_CHECKING:
    from core.offload import Offload


class Keeper:
    """Where the solved blocks outlive a kill.  This one forgets; the harness hands over one that does not.

    A block is its linears by name; ``values`` are the weights as the model holds them, in its own dtype; ``parts`` are
    left out.
    """

    def load(self, block: int) -> dict[str, Stored] | None:
        """A solved block, or None: it must be solved."""

    def save(self, block: int, solved: dict[str, Stored]) -> None:
        """Keep a solved block."""


class Originals:
    """The weights as loaded, and the only way in which they are changed."""

    def __init__(self, linears: dict[str, torch.nn.Linear], offload: Offload | None = None):
        """offload: how the linears' model is; where its blocks rest in files, the weights as loaded do too."""
        from core.offload import copied

        self.linears, self.offload = linears, offload
        scratch = offload.scratch if offload else None
        self.weights = {fqn: copied(lin.weight.detach(), scratch) for fqn, lin in linears.items()}
        self.changed: set[str] = set()
        self.holds: str | None = None  # digest of what the linears hold now, for who wants to skip doing it again

    def apply(self, plan: Plan, quantizer: str | None, step=lambda done, total: None) -> None:
        """Make the model hold the plan's weights; linears the plan does not name are as loaded."""
        if plan.layers and quantizer is None:
            raise ValueError("a plan with quantized linears needs a quantizer")
        self.restore(self.changed - set(plan.layers))
        self.write(plan.layers, quantizer, step)

    def write(self, layers: dict[str, LayerPlan], quantizer: str | None, step=lambda done, total: None) -> None:
        """Quantize the linears named, always from the weights as loaded."""
        self.holds = None
        for done, (fqn, layer) in enumerate(layers.items(), 1):
            with torch.no_grad():
                values = QUANTIZERS.get(quantizer).fn(self._on_device(fqn), layer)
                self.put(fqn, checked(quantizer, fqn, values, self.weights[fqn].shape))
            step(done, len(layers))

    def restore(self, names: set[str] | None = None) -> None:
        """Make the linears named (all, if none are) as they were loaded."""
        self.holds = None
        for fqn in set(self.changed if names is None else names):
            self.put(fqn, self.weights[fqn])
            self.changed.discard(fqn)

    def solve(self, layers: dict[str, LayerPlan], quantizer: str, *, model, blocks, block_of: dict[str, int],
              calib: CalibSet | None = None, fisher: dict[str, torch.Tensor] | None = None, options: dict | None = None,
              library: Callable[[str], Stored] | None = None,
              step=lambda done, total: None, see: Callable[[str, Stored], None] = lambda fqn, stored: None,
              keeper: Keeper | None = None) -> dict[str, Stored]:
        """Quantize the linears named by a quantizer that reads data.

        Returns what came out, without the weights (``see`` gets all of it).  Always from the weights as loaded; linears
        at 16 bits and those not named are as loaded.  Quantizers that need a Hessian see the inputs that the blocks
        before, already quantized, give.  Blocks that ``keeper`` has are taken from it (``see`` hears nothing of them),
        all others are handed to it.  Raises UserError where a quantizer gives weights that are not finite.
        """
        from core.architecture import expert_of

        spec, solved = QUANTIZERS.get(quantizer), {}
        self.restore()
        for fqn, layer in layers.items():
            if layer.bits == 16 and layer.group_bits is None:
                self.put(fqn, sixteen(self._on_device(fqn)))
                solved[fqn] = Stored(torch.empty(0), layer)
        todo = {fqn: self.linears[fqn] for fqn in layers if fqn not in solved}

        def solve_one(fqn: str, aid: Aid) -> torch.Tensor:
            aid = replace(aid, options=options or {}, fisher=None if fisher is None else fisher[fqn],
                          library=library, kept_dtype=sixteen_bit(self.weights[fqn].dtype))
            stored = spec.fn(self._on_device(fqn).float(), layers[fqn], aid)
            if not isinstance(stored, Stored):
                raise ValueError(f"{quantizer} gave {fqn} a {type(stored).__name__}; a quantizer that reads data "
                                 "returns core.types.Stored")
            checked(quantizer, fqn, stored.values, self.weights[fqn].shape)
            self.changed.add(fqn)
            see(fqn, stored)
            seen = {} if expert_of(fqn) is None and aid.tokens != 0 else {"tokens": aid.tokens}
            solved[fqn] = replace(stored, values=torch.empty(0), parts={}, notes=stored.notes | seen)
            return stored.values.to(self.linears[fqn].weight.dtype)

        in_blocks = _Blocks(self, todo, block_of=block_of, keeper=keeper or Keeper(), solved=solved)
        with torch.no_grad():
            if set(spec.needs) & {"hessian", "inputs"}:
                from streams.blocks import BlockStream, walk

                walk(BlockStream(model, blocks, calib.tokens), todo, block_of, solve_one=solve_one, progress=step,
                     sequential=spec.sequential, resume=in_blocks.resume, after=in_blocks.after)
            else:
                in_blocks.each_alone(solve_one, step)
        return {fqn: solved[fqn] for fqn in layers}

    def _on_device(self, fqn: str) -> torch.Tensor:
        """A copy: a quantizer may write into what it is given."""
        device = self.offload.device if self.offload else self.linears[fqn].weight.device
        return self.weights[fqn].to(device, copy=True)

    def put(self, fqn: str, value: torch.Tensor) -> None:
        """Make one linear hold ``value`` [out, in]."""
        self.linears[fqn].weight.data.copy_(value)
        self.changed.add(fqn)


def checked(quantizer: str, fqn: str, values, shape) -> torch.Tensor:
    """What a quantizer gave one linear, if it is a finite tensor of the weight's shape."""
    if not isinstance(values, torch.Tensor) or tuple(values.shape) != tuple(shape):
        shaped = isinstance(values, torch.Tensor)
        given = f"a tensor of shape {tuple(values.shape)}" if shaped else f"a {type(values).__name__}"
        raise ValueError(f"{quantizer} gave {fqn} {given}; it must give a tensor of shape {tuple(shape)}")
    if not torch.isfinite(values).all():
        raise UserError(f"{quantizer} gave {fqn} weights that are not finite; use more calibration tokens "
                        "(--calib_tokens) or more bits")
    return values


@dataclass
class _Blocks:
    """The blocks of one solve on their way from and to a keeper."""

    originals: Originals
    todo: dict[str, torch.nn.Linear]
    block_of: dict[str, int]
    keeper: Keeper
    solved: dict[str, Stored]  # filled here and by the solve

    def _inside(self, block: int) -> list[str]:
        return [fqn for fqn in self.todo if self.block_of[fqn] == block]

    def resume(self, block: int) -> bool:
        """Put a block that was solved before into the model; whether it was."""
        earlier = self.keeper.load(block)
        if earlier is None:
            return False
        for fqn in self._inside(block):
            self.originals.put(fqn, earlier[fqn].values)
            self.solved[fqn] = replace(earlier[fqn], values=torch.empty(0))
        return True

    def after(self, block: int) -> None:
        """Keep a block as the model holds it now."""
        self.keeper.save(block, {fqn: replace(self.solved[fqn], values=self.todo[fqn].weight.detach())
                                 for fqn in self._inside(block)})

    def each_alone(self, solve_one: Callable[[str, Aid], torch.Tensor], step) -> None:
        """Solve linears that read no inputs, block by block so that a kill loses one block."""
        done = 0
        for block in sorted({self.block_of[fqn] for fqn in self.todo}):
            if self.resume(block):
                done += len(self._inside(block))
                step(done, len(self.todo))
                continue
            for fqn in self._inside(block):
                self.originals.put(fqn, solve_one(fqn, Aid(fqn)))
                done += 1
                step(done, len(self.todo))
            self.after(block)


def distortion_table(weights: dict[str, torch.Tensor], budget: Budget, quantizer: str, step=lambda done, total: None,
                     device: torch.device | None = None) -> dict[str, list[float]]:
    """‖W − Q_b(W)‖² (squared Frobenius norm, float64 sum) of every linear at every level of the budget, ascending."""
    fn, table = QUANTIZERS.get(quantizer).fn, {}
    for done, (fqn, weight) in enumerate(weights.items(), 1):
        weight = weight.detach().to(device) if device else weight.detach()
        table[fqn] = []
        for level in sorted(budget.levels):
            rounded = checked(quantizer, fqn, fn(weight.clone(), grid_plan(level, budget)), weight.shape)
            delta = weight.float() - rounded.float()
            table[fqn].append(float(delta.square().sum(dtype=torch.float64)))
        step(done, len(weights))
    return table
