"""Outputs of a block's parts whose linears are all solved: run once more, and remembered for the runs that follow.

A part is a direct child of the block (attention, MLP).  When its last linear is solved, all linears that run before it
are solved too, so within the block it will give the same again.
"""

from contextlib import ExitStack, contextmanager

import torch
from torch import nn


class Settled:
    """What settled parts of one block gave, by batch."""

    def __init__(self, block: nn.Module, linears: dict[str, nn.Linear]):
        inside = {id(lin): fqn for fqn, lin in linears.items()}
        self.open = {child: {inside[id(m)] for m in child.modules() if id(m) in inside}
                     for child in block.children() if not isinstance(child, nn.Linear)}
        self.open = {child: names for child, names in self.open.items() if names}
        self.outputs: dict[nn.Module, dict[int, object]] = {}  # part -> batch -> what it returned

    def solved(self, names) -> None:
        """These linears hold their final weights now."""
        for child, left in list(self.open.items()):
            left.difference_update(names)
            if not left:
                self.outputs[child] = {}
                del self.open[child]

    @contextmanager
    def remembered(self, batch: int):
        """Run the block's ``batch`` inside: settled parts are taken from memory, or remembered.

        Not for the next time: a part that is called twice in one run, or whose output the block changes in place.
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
            if len(given) > 1 or any(changed(output, versions) for output, versions in given):
                del self.outputs[child]
            elif given:
                self.outputs[child][batch] = given[0][0]


def _forward(plain, known, calls: list):
    def forward(*args, **kwargs):
        output = plain(*args, **kwargs) if known is None or calls else known
        calls.append((output, [tensor._version for tensor in tensors(output)]))
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


def changed(output, versions: list[int]) -> bool:
    """Whether any tensor was written to since."""
    return [tensor._version for tensor in tensors(output)] != versions
