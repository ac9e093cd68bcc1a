"""A plugin must not poison others: what it leaves in the model is refused and removed."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
         "_load_state_dict_pre_hooks")


class Untouched:
    """The state of a model that no scorer may leave changed: hooks, buffers, modes, requires_grad, replaced methods."""

    def __init__(self, module: nn.Module):
        self.modules = [(name, m, {h: dict(getattr(m, h)) for h in HOOKS}, dict(m._buffers), m.training,
                         m.__dict__.get("forward"))
                        for name, m in module.named_modules()]
        self.parameters = [(name, p, p.requires_grad) for name, p in module.named_parameters()]

    def restored(self) -> list[str]:
        """Put everything back; returns what had been left, in words."""
        left = []
        for name, module, hooks, buffers, training, forward in self.modules:
            where = name or "the model"
            for kind, before in hooks.items():
                now = getattr(module, kind)
                if dict(now) != before:
                    left.append(f"{len(now.keys() - before.keys()) or 'no'} hooks more on {where}")
                    now.clear()
                    now.update(before)
            if module._buffers.keys() != buffers.keys() or any(module._buffers[k] is not b for k, b in buffers.items()):
                left.append(f"other buffers in {where}")
                module._buffers.clear()
                module._buffers.update(buffers)
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
        return left


@contextmanager
def untouched(module: nn.Module, who: str) -> Iterator[None]:
    """Refuse what ``who`` leaves changed in the model, after it was put back, so that no later cell sees it."""
    state = Untouched(module)
    try:
        yield
    except BaseException:
        state.restored()
        raise
    left = state.restored()
    if left:
        raise ValueError(f"{who} left {left[0]}" + (f" and {len(left) - 1} more such changes" if len(left) > 1 else "")
                         + "; it must leave the model as it found it")
