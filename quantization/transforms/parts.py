"""Which norm feeds which linears, and which linears write the hidden state: read off one short forward pass.

No file for each family: a linear reads a norm where the very tensor that it is called with came out of that norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from core.architecture import find_linears
from core.errors import UserError
from core.forward import call, device_of

TOKENS = 24  # of the pass, and of the one that compares logits


@dataclass(frozen=True)
class Norm:
    """A norm of the hidden state, and what reads it."""

    path: str
    module: nn.Module
    readers: tuple[str, ...]  # full names of linears; the head among them

    def gain(self) -> tuple[torch.Tensor, bool]:
        """(γ float64 [d], whether the weight holds γ − 1, as Gemma's do).

        Raises UserError for a norm without weights.
        """
        weight = getattr(self.module, "weight", None)
        if weight is None:
            raise UserError(f"the norm {self.path} has no weights to fold into")
        weight = weight.detach().double()
        if isinstance(self.module, nn.LayerNorm):
            return weight, False
        out = self.module(torch.ones_like(self.module.weight)).double()  # γ / √(1 + ε), whatever it is made of
        one_less = bool((out - 1 - weight).norm() < (out - weight).norm())
        return (1 + weight if one_less else weight), one_less

    def put(self, gain: torch.Tensor, one_less: bool) -> None:
        """Make γ the norm's gain."""
        self.module.weight.data = (gain - 1 if one_less else gain).to(self.module.weight.dtype)


@dataclass(frozen=True)
class Parts:
    """What of a model touches the hidden state [.., d]."""

    norms: tuple[Norm, ...]
    embeddings: tuple[nn.Embedding, ...]  # added to it: of tokens, of learned positions
    writers: tuple[str, ...]  # linears of the blocks whose output is added to it
    head: str


def probe_ids(model: nn.Module) -> torch.Tensor:
    """Token ids [1, TOKENS] spread over the vocabulary."""
    size = model.get_input_embeddings().weight.shape[0]
    return torch.linspace(1, size - 1, TOKENS).long()[None].to(device_of(model))


@torch.no_grad()
def find_parts(model: nn.Module) -> Parts:
    """The parts of a model with weights; raises UserError where they are not to be told."""
    width = model.get_input_embeddings().embedding_dim
    named, linears = dict(model.named_modules()), find_linears(model)[0]
    head = next((name for name, module in named.items() if module is model.get_output_embeddings()), None)
    if head is None:
        raise UserError(f"{type(model).__name__} has no head of its own; use --transform none")
    norms = {name: module for name, module in named.items() if _is_norm(module, width)}
    made: dict[str, torch.Tensor] = {}
    reads: dict[str, str] = {}

    def note(name: str, x: torch.Tensor) -> None:
        source = next((norm for norm, out in made.items() if x is out or x._base is out), None)
        if source is not None:
            reads[name] = source

    hooks = [module.register_forward_hook(lambda _m, _a, out, name=name: made.update({name: out}))
             for name, module in norms.items()]
    hooks += [named[name].register_forward_pre_hook(lambda _m, args, name=name: note(name, args[0]), prepend=True)
              for name in (*linears, head)]
    try:
        ids = probe_ids(model)
        call(model, ids, torch.ones_like(ids), last_only=False)
    finally:
        for hook in hooks:
            hook.remove()
    readers = {name: tuple(sorted(fqn for fqn, norm in reads.items() if norm == name)) for name in norms}
    writers = tuple(fqn for fqn, linear in linears.items() if fqn not in reads and linear.out_features == width)
    embeddings = tuple(m for m in named.values() if isinstance(m, nn.Embedding) and m.embedding_dim == width)
    return Parts(norms=tuple(Norm(name, module, readers[name]) for name, module in norms.items()),
                 embeddings=embeddings, writers=writers, head=head)


def _is_norm(module: nn.Module, width: int) -> bool:
    """Whether it normalizes hidden states: by its class's name and the shape of its weight."""
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("Norm") and (weight is None or tuple(weight.shape) == (width,))
