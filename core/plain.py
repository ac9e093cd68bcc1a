"""Every matrix of a model's blocks as an ``nn.Linear``, whatever the family keeps it in, so that all else sees linears.

    Conv1D              weight [in, out]                     GPT-2 and its kin: one transposed linear
    fused experts       up [E, out, in] and down, or both    one linear a matrix and expert, called with the tokens that
                        transposed, with biases or without   are routed to it; an expert without tokens is not called
    parallel experts    weight [E, out, in], tokens sorted   JetMoE
    batched experts     up [E, in, out], all tokens each     Llama 4: rows of tokens that go elsewhere are zero
    experts in rows     w1, v1, w2 [E · ffn, hidden]         DBRX

The model's function stays what it was, up to the order of sums.  Linears made of a fused parameter are views of it, so
no weight is held twice.  ``stored_state`` gives the weights back as the checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

import torch
from torch import nn


@dataclass(frozen=True)
class Fused:
    """How one parameter of a checkpoint is made up of linears."""

    name: str  # of the parameter, full
    parts: tuple[str, ...]  # weights or biases of the linears, full names, in order
    transposed: bool  # a part is [in, out] there
    shape: tuple[int, ...]


def make_plain(model: nn.Module) -> nn.Module:
    """Put linears in place of what holds matrices otherwise, in place; a model without such parts stays as it is."""
    fused: list[Fused] = []
    for path, module in list(model.named_modules()):
        for knows, change in KINDS:
            if knows(module):
                fused += change(model, path, module)
                break
    if fused:
        model.fused_parameters = tuple(fused)
    return model


def stored_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state dict with the names and shapes of its checkpoint."""
    state = dict(model.state_dict())
    for one in getattr(model, "fused_parameters", ()):
        parts = [state.pop(name) for name in one.parts]
        whole = torch.stack([part.t() if one.transposed and part.ndim == 2 else part for part in parts])
        state[one.name] = whole.reshape(one.shape).contiguous()
    return state


def is_plain(model: nn.Module) -> bool:
    """Whether the model's linears are those of its checkpoint."""
    return not getattr(model, "fused_parameters", ())


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A linear that holds these very tensors, [out, in] and [out]."""
    linear = nn.Linear(1, 1, bias=bias is not None, device="meta")
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _split(path: str, module: nn.Module, name: str, linears: str, count: int, transposed: bool,
           part: str = "weight") -> tuple[list[torch.Tensor], Fused]:
    """Take a parameter off a module: its parts as [out, in] or [out], and how they made it up.

    ``linears`` is the linear's name below the module, with {} for the expert's number.
    """
    whole = getattr(module, name).detach()
    delattr(module, name)
    each = whole.reshape(count, -1, whole.shape[-1]) if part == "weight" else whole.reshape(count, -1)
    parts = [one.t().contiguous() if transposed and part == "weight" else one for one in each]
    names = tuple(f"{path}.{linears.format(i)}.{part}" for i in range(count))
    return parts, Fused(f"{path}.{name}", names, transposed, tuple(whole.shape))


# Conv1D

def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module, "weight", None) is not None


def _change_conv1d(model: nn.Module, path: str, module: nn.Module) -> list[Fused]:
    weight = module.weight.detach()
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, _linear(weight.t().contiguous(), module.bias.detach()))
    return [Fused(f"{path}.weight", (f"{path}.weight",), True, tuple(weight.shape))]


# experts

def _set_experts(module: nn.Module, linears: dict[str, list[nn.Linear]], forward: Callable) -> None:
    """Give a module one child an expert, with its linears by name, and a forward that calls them."""
    for expert in range(len(next(iter(linears.values())))):
        child = nn.Module()
        for name, each in linears.items():
            child.add_module(name, each[expert])
        module.add_module(str(expert), child)
    module.forward = MethodType(forward, module)


def _is_fused(module: nn.Module) -> bool:
    down = getattr(module, "down_proj", None)
    return isinstance(down, nn.Parameter) and down.ndim == 3 and hasattr(module, "has_gate")


def _take(path: str, module: nn.Module, names: tuple[str, str], *, transposed: bool, bias: bool
          ) -> tuple[list[Fused], dict[str, list[nn.Linear]]]:
    """Take experts' parameters [E, ...] off a module: how they were made up, and the linears of each name."""
    fused, linears = [], {}
    for name in names:
        count = len(getattr(module, name))
        weights, how = _split(path, module, name, f"{{}}.{name}", count, transposed)
        fused.append(how)
        biases: list = [None] * count
        if bias:
            biases, how = _split(path, module, f"{name}_bias", f"{{}}.{name}", count, False, "bias")
            fused.append(how)
        linears[name] = list(map(_linear, weights, biases))
    return fused, linears


def _change_fused(model: nn.Module, path: str, module: nn.Module) -> list[Fused]:
    up = "gate_up_proj" if module.has_gate else "up_proj"
    fused, linears = _take(path, module, (up, "down_proj"), transposed=module.is_transposed, bias=module.has_bias)
    _set_experts(module, linears, _routed)
    return fused


def routed_sum(experts: Callable[[int, torch.Tensor], torch.Tensor], hidden: torch.Tensor, index: torch.Tensor,
               weights: torch.Tensor, count: int) -> torch.Tensor:
    """Σ over the chosen experts of weight · expert(token), [tokens, hidden]; an index of ``count`` or more is nobody.

    index and weights [tokens, k]; each expert is called once, with its own tokens in their order.
    """
    out = torch.zeros_like(hidden)
    for expert in index.unique().tolist():
        if expert < count:
            token, slot = torch.where(index == expert)
            out = out.index_add(0, token, (experts(expert, hidden[token]) * weights[token, slot, None]).to(out.dtype))
    return out


def _routed(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    def expert(number: int, rows: torch.Tensor) -> torch.Tensor:
        one = self.get_submodule(str(number))
        rows = self._apply_gate(one.gate_up_proj(rows)) if self.has_gate else self.act_fn(one.up_proj(rows))
        rows = one.down_proj(rows)
        return self.post_expert_norm(rows) if self.has_post_expert_norm else rows

    return routed_sum(expert, hidden_states, top_k_index, top_k_weights, self.num_experts)


def _is_parallel(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (isinstance(weight, nn.Parameter) and weight.ndim == 3 and hasattr(module, "num_experts")
            and hasattr(module, "output_size"))


def _change_parallel(model: nn.Module, path: str, module: nn.Module) -> list[Fused]:
    weights, how = _split(path, module, "weight", "{}.linear", module.num_experts, False)
    _set_experts(module, {"linear": list(map(_linear, weights))}, _sorted)
    return [how]


def _sorted(self, inputs: torch.Tensor, expert_size) -> torch.Tensor:
    sizes = expert_size.tolist() if torch.is_tensor(expert_size) else list(expert_size)
    parts = zip(range(self.num_experts), inputs.split(sizes), strict=True)
    return torch.cat([self.get_submodule(f"{number}.linear")(rows) if len(rows) else rows.new_zeros(0, self.output_size)
                      for number, rows in parts])


def _is_batched(module: nn.Module) -> bool:
    return type(module).__name__ == "Llama4TextExperts" and isinstance(module.down_proj, nn.Parameter)


def _change_batched(model: nn.Module, path: str, module: nn.Module) -> list[Fused]:
    fused, linears = _take(path, module, ("gate_up_proj", "down_proj"), transposed=True, bias=False)
    _set_experts(module, linears, _every)
    return fused


def _every(self, hidden_states: torch.Tensor) -> torch.Tensor:
    outs = []
    for number, rows in enumerate(hidden_states.view(self.num_experts, -1, self.hidden_size)):
        one = self.get_submodule(str(number))
        gate, up = one.gate_up_proj(rows).chunk(2, dim=-1)
        outs.append(one.down_proj(up * self.act_fn(gate)))
    return torch.cat(outs)


def _is_in_rows(module: nn.Module) -> bool:
    return type(module).__name__ == "DbrxExperts" and isinstance(getattr(module.mlp, "w1", None), nn.Parameter)


def _change_in_rows(model: nn.Module, path: str, module: nn.Module) -> list[Fused]:
    fused, linears = [], {}
    for name in ("w1", "v1", "w2"):
        weights, how = _split(f"{path}.mlp", module.mlp, name, "{}", module.num_experts, name == "w2")
        fused.append(Fused(how.name, tuple(f"{path}.{i}.{name}.weight" for i in range(module.num_experts)),
                           how.transposed, how.shape))
        linears[name] = list(map(_linear, weights))
    _set_experts(module, linears, _in_rows)
    return fused


def _in_rows(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    def expert(number: int, rows: torch.Tensor) -> torch.Tensor:
        one = self.get_submodule(str(number))
        return one.w2(self.mlp.activation_fn(one.w1(rows)) * one.v1(rows))

    flat = hidden_states.reshape(-1, self.hidden_size)
    return routed_sum(expert, flat, top_k_index, top_k_weights, self.num_experts).view(hidden_states.shape)


KINDS = ((_is_conv1d, _change_conv1d), (_is_fused, _change_fused), (_is_parallel, _change_parallel),
         (_is_batched, _change_batched), (_is_in_rows, _change_in_rows))
