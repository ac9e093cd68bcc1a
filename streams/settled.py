"""Outputs of a block's parts and linears that are solved: run once more, and remembered for the runs that follow.

A part is a direct child of the block (attention, MLP).  When its last linear is solved, and those of all parts before
it, it will give the same again for the rest of this block's solving.  So will a solved linear inside a part that is at
work; on a CPU, where a run of the block costs more than memory, its output is remembered until its part's is, as far
as LINEARS goes.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from core.architecture import expert_of

LINEARS = 2**28  # bytes of linears' outputs at a time


class Settled:
    """What settled parts and linears of one block gave, by batch.

    order: the block's linears in running order, as far as the first batch shows it.  A part settles only after every
    part that stands before it, in that order or in the block: one whose experts no token of the first batch reached
    may run before parts that are solved earlier.  So no linear of a part with experts is remembered by itself.
    """

    def __init__(self, block: nn.Module, linears: dict[str, nn.Linear], order: Sequence[str]):
        inside = {id(lin): fqn for fqn, lin in linears.items()}
        place = {fqn: at for at, fqn in enumerate(order)}
        parts = [(child, {inside[id(m)] for m in child.modules() if id(m) in inside}) for child in block.children()]
        parts = [(child, names) for child, names in parts if names]
        self.linears = linears
        self.left = {child: set(names) for child, names in parts}
        first = {child: min(place[name] for name in names) for child, names in parts}
        self.before = {child: {other for other, _ in parts[:at]} | {other for other, _ in parts
                                                                     if first[other] < first[child]}
                       for at, (child, _) in enumerate(parts)}
        self.names = {child: names for child, names in parts if not isinstance(child, nn.Linear)
                      and not any(expert_of(name) for name in names)}
        self.outputs: dict[nn.Module, dict[int, object]] = {}  # part or linear -> batch -> what it returned
        self.held = 0  # bytes of linears' outputs
        self.unfit: set[nn.Module] = set()  # what must not be remembered

    def solved(self, names: Iterable[str]) -> None:
        """These linears hold their final weights now."""
        names = set(names)
        for left in self.left.values():
            left -= names
        for child in list(self.left):
            if any(self.left.get(other) for other in self.before[child]):
                continue  # its input may change yet
            if not self.left[child]:
                del self.left[child]
                if not isinstance(child, nn.Linear):
                    self.outputs[child] = {}
            elif child in self.names:
                for lin in (self.linears[name] for name in self.names[child] - self.left[child]):
                    if lin.weight.device.type == "cpu" and lin not in self.unfit:
                        self.outputs.setdefault(lin, {})

    @contextmanager
    def remembered(self, batch: int):
        """Run the block's ``batch`` inside: what settled is taken from memory, or remembered.

        Not for the next time: what is called twice in one run, whose output the block changes in place, or that gives
        more than hidden states (eager attention's weights grow with the square of the length).
        """
        calls: dict[nn.Module, list] = {child: [] for child in self.outputs}
        with ExitStack() as undo:
            undo.callback(self._remember, batch, calls)  # also where the run ends early
            for child, known in self.outputs.items():
                undo.callback(_put_back, child, child.__dict__.get("forward"))
                child.forward = _forward(child.forward, known.get(batch), calls[child])
            yield

    def _remember(self, batch: int, calls: dict[nn.Module, list]) -> None:
        for child, given in calls.items():
            if len(given) > 1 or any(before is None or versions(output) != before for output, before in given):
                self._forget(child, *self.outputs.pop(child).values())
                self.unfit.add(child)
            elif given and batch not in self.outputs[child]:
                self._hold(child, batch, given[0][0])
        for child, names in self.names.items():  # its linears will not run again
            if batch in self.outputs.get(child, ()):
                for lin in (self.linears[name] for name in names):
                    self._forget(lin, self.outputs.get(lin, {}).pop(batch, None))

    def _hold(self, child: nn.Module, batch: int, output) -> None:
        if isinstance(child, nn.Linear):
            if self.held + output.nbytes > LINEARS:
                return
            self.held += output.nbytes
        self.outputs[child][batch] = output

    def _forget(self, child: nn.Module, *outputs) -> None:
        if isinstance(child, nn.Linear):
            self.held -= sum(output.nbytes for output in outputs if output is not None)


def _forward(plain, known, calls: list):
    def forward(*args, **kwargs):
        output = plain(*args, **kwargs) if known is None or calls else known
        calls.append((output, versions(output)))
        return output
    return forward


def _put_back(child: nn.Module, held) -> None:
    if held is None:
        del child.forward
    else:
        child.forward = held


def tensors(output) -> list[torch.Tensor]:
    """The tensors of what a module returned."""
    if torch.is_tensor(output):
        return [output]
    return [tensor for one in output for tensor in tensors(one)] if isinstance(output, (tuple, list)) else []


def versions(output) -> list[int] | None:
    """How often each tensor was written to; None for what must not be remembered: more than hidden states, no tensors
    that can be looked at, or those of inference mode, which do not say.
    """
    held = tensors(output)
    if not held or any(t.is_inference() for t in held) or sum(t.numel() for t in held[1:]) > held[0].numel():
        return None
    return [tensor._version for tensor in held]
