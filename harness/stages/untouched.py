"""A plugin must not poison others: what it leaves in the model is refused and removed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
         "_load_state_dict_pre_hooks")
PARTS = {"_modules": "other modules in", "_parameters": "other parameters in", "_buffers": "other buffers in"}
SMALL = 2**20  # values; a larger tensor, or a linear's weight, is not copied: if changed, the model is loaded again


class Untouched:
    """The state of a model that no scorer may leave changed: modules, values, hooks, modes, requires_grad, methods.

    The linears' weights are watched but not copied: that would be the model once more.
    """

    def __init__(self, module: nn.Module):
        self.modules = [(name, m, {h: dict(getattr(m, h)) for h in HOOKS}, {p: dict(getattr(m, p)) for p in PARTS},
                         m.training, m.__dict__.get("forward")) for name, m in module.named_modules()]
        self.parameters = [(name, p, p.requires_grad) for name, p in module.named_parameters()]
        linears = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
        self.values = [(name, t, t._version, _checksum(t),
                        t.detach().clone() if t.numel() <= SMALL and id(t) not in linears else None)
                       for name, t in (*module.named_parameters(), *module.named_buffers())]
        self.spoilt = False  # a tensor that was not copied has other values

    def restored(self) -> list[str]:
        """Put everything back; returns what had been left, in words."""
        left = []
        for name, module, hooks, parts, training, forward in self.modules:
            where = name or "the model"
            for kind, before in hooks.items():
                now = getattr(module, kind)
                if dict(now) != before:
                    left.append(f"{len(now.keys() - before.keys()) or 'no'} hooks more on {where}")
                    now.clear()
                    now.update(before)
            for kind, before in parts.items():
                now = getattr(module, kind)
                if now.keys() != before.keys() or any(now[key] is not part for key, part in before.items()):
                    left.append(f"{PARTS[kind]} {where}")
                    now.clear()
                    now.update(before)
            if module.training != training:
                left.append(f"{'training' if module.training else 'evaluation'} mode on {where}")
                module.training = training
            if module.__dict__.get("forward") is not forward:
                left.append(f"another forward in {where}")
                module.__dict__.pop("forward") if forward is None else module.__dict__.update(forward=forward)
        for name, parameter, wanted in self.parameters:
            if parameter.requires_grad != wanted or parameter.grad is not None:
                left.append(f"requires_grad or a gradient on {name}")
                parameter.requires_grad_(wanted)
                parameter.grad = None
        return left + [f"other values in {name}" for name, *value in self.values if self._changed(*value)]

    def _changed(self, tensor: torch.Tensor, version: int, checksum: float, copy: torch.Tensor | None) -> bool:
        """Whether a tensor has other values than before; a small one gets them back."""
        if tensor._version == version and _checksum(tensor) == checksum:
            return False
        if copy is None:
            self.spoilt = True
        else:
            tensor.data.copy_(copy)
        return True


def _checksum(tensor: torch.Tensor) -> float:
    """The sum of the values: sees a write through ``.data`` as well, which counts no version.

    Part by part, for a sum in float64 copies what it sums.
    """
    if tensor.is_meta:
        return 0.0
    return sum(float(part.sum(dtype=torch.float64)) for part in tensor.detach().flatten().split(SMALL))


@contextmanager
def untouched(module: nn.Module, who: str, reload: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Refuse what ``who`` leaves changed in the model, after it was put back, so that no later cell sees it.

    ``reload`` is called where it could not be put back.
    """
    state = Untouched(module)
    try:
        yield
    except BaseException:
        state.restored()
        if state.spoilt:
            reload()
        raise
    left = state.restored()
    if state.spoilt:
        reload()
    if left:
        raise ValueError(f"{who} left {left[0]}" + (f" and {len(left) - 1} more such changes" if len(left) > 1 else "")
                         + "; it must leave the model as it found it")
