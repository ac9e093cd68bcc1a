"""Rows whose scales and kept weights are tuned when their linears are solved (quantization/tuning.py).

What the solver made of a block, codes included, and the state after every round outlive a kill.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from core.types import Plan, Stored
from harness.stages.case import Case
from harness.store.partial import Partial
from quantization.apply import Keeper
from quantization.solvers.kept import sixteen, sixteen_bit
from quantization.tuning import TUNE, Tunable, Tuning
from streams.divergence import log_chances

STATE = "tuned"


class WithParts(Keeper):
    """A keeper of solved blocks that keeps codes, scales and kept weights too; ``solved`` gathers them by name, without
    the weights that they say.
    """

    def __init__(self, keeper: Keeper, partial: Partial | None):
        self.keeper, self.partial, self.solved = keeper, partial, {}

    def see(self, fqn: str, stored: Stored) -> None:
        """Take up what the solver made of a linear."""
        self.solved[fqn] = replace(stored, values=torch.empty(0))

    def load(self, block: int) -> dict[str, Stored] | None:
        earlier = self.keeper.load(block)
        parts = None if earlier is None or self.partial is None else self.partial.load_tensors(_name(block))
        if parts is None:
            return None
        for fqn, stored in earlier.items():
            own = {name.removeprefix(f"{fqn}|"): part for name, part in parts.items() if name.startswith(f"{fqn}|")}
            self.see(fqn, replace(stored, parts=own))
        return earlier

    def save(self, block: int, solved: dict[str, Stored]) -> None:
        self.keeper.save(block, solved)
        if self.partial is not None:
            # copies: q, k and v may share the order of their columns, and a file may not hold one tensor twice
            self.partial.save_tensors(_name(block), {f"{fqn}|{name}": part.clone() for fqn in solved
                                                     for name, part in self.solved[fqn].parts.items()})


def _name(block: int) -> str:
    return f"parts-{block:05d}"


def rounds_of(case: Case) -> int:
    """How many rounds the row is tuned."""
    return TUNE.of(case.method.options)


def tuned(case: Case, plan: Plan, solved: dict[str, Stored], see: Callable[[str, Stored], None],
          partial: Partial | None) -> list[float]:
    """Make the model hold a plan's linears, which are ``solved``, tuned, and hand each to ``see``; returns the KL
    divergence of each round on the documents that were read, nats a token.
    """
    with case.memory("scales and kept weights are tuned", "lower --calib_tokens or --calib_window, or use tune=0"):
        return _tuned(case, plan, solved, see, partial)


def _tuned(case: Case, plan: Plan, solved: dict[str, Stored], see: Callable[[str, Stored], None],
           partial: Partial | None) -> list[float]:
    model, documents = case.model, case.solver_calib.tokens
    full = _full(case, documents)
    weights = model.originals.weights
    model.originals.changed |= plan.layers.keys()  # from here on, whatever happens
    # in the plan's order, which is the same in every process
    tunables = {fqn: Tunable(solved[fqn], sixteen_bit(weights[fqn].dtype), model.linears[fqn].weight.device)
                for fqn in plan.layers if fqn in solved}
    for fqn in plan.layers.keys() - tunables.keys():  # those at 16 bits, which no solver sees
        model.originals.put(fqn, sixteen(weights[fqn]))
    work = Tuning(model.module, {fqn: model.linears[fqn].weight for fqn in tunables}, tunables, documents, full,
                  rounds=rounds_of(case), seed=case.cell.seed)
    kl = work.run(keep=lambda state: None if partial is None else partial.save(STATE, state),
                  earlier=None if partial is None else partial.load(STATE), progress=case.progress.update)
    for fqn, one in tunables.items():
        see(fqn, one.stored())
    return kl


@torch.no_grad()
def _full(case: Case, documents: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
    """The full model's log-probabilities of every document, bf16 [T, vocabulary] on the CPU."""
    case.model.originals.restore()
    return [log_chances(case.model.module, ids).bfloat16().cpu() for ids in documents]
