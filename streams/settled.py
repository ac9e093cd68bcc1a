"""Outputs of a block's parts whose linears are all solved: run once more, and remembered for the runs that follow.

A part is a direct child of the block (attention, MLP).  When its last linear is solved, and those of all parts before
it, it will give the same again for the rest of this block's solving.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


class Settled:
    """What settled parts of one block gave, by batch.

    order: the block's linears in running order, as far as the first batch shows it.  A part settles only after every
    part that stands before it, in that order or in the block: one whose experts no token of the first batch reached
    may run before parts that are solved earlier.
    """

    def __init__(self, block: nn.Module, linears: dict[str, nn.Linear], order: Sequence[str]):
        inside = {id(lin): fqn for fqn, lin in linears.items()}
        place = {fqn: at for at, fqn in enumerate(order)}
        parts = [(child, {inside[id(m)] for m in child.modules() if id(m) in inside}) for child in block.children()]
        parts = [(child, names) for child, names in parts if names]
        self.left = {child: names for child, names in parts}
        first = {child: min(place[name] for name in names) for child, names in parts}
        self.before = {child: {other for other, _ in parts[:at]} | {other for other, _ in parts
                                                                     if first[other] < first[child]}
                       for at, (child, _) in enumerate(parts)}
        self.outputs: dict[nn.Module, dict[int, object]] = {}  # part -> batch -> what it returned

    def solved(self, names: Iterable[str]) -> None:
        """These linears hold their final weights now."""
        names = set(names)
        for left in self.left.values():
            left -= names
        for child in [child for child, left in self.left.items() if not left]:
            if not any(self.left.get(other) for other in self.before[child]):
                del self.left[child]
                if not isinstance(child, nn.Linear):
                    self.outputs[child] = {}

    @contextmanager
    def remembered(self, batch: int):
        """Run the block's ``batch`` inside: settled parts are taken from memory, or remembered.

        Not for the next time: a part that is called twice in one run, whose output the block changes in place, or that
        gives more than hidden states (eager attention's weights grow with the square of the length).
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
                del self.outputs[child]
            elif given:
                self.outputs[child][batch] = given[0][0]


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
