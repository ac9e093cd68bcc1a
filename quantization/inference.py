"""What a quantized linear does at run time where it is not one matrix product: two branches, kept apart in memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from core.errors import UserError
from core.types import LayerPlan
from quantization.solvers.bnb import BLOCK, four_bit, from_four_bit
from quantization.solvers.kept import sixteen_bit
from quantization.solvers.split import KIND, rest_of


class CircuitAwareLinear(nn.Module):
    """A linear whose kept rows or columns are a 16-bit matrix, and whose rest is packed in 4 bits.

    Buffers: ``kept`` 16-bit [kept, in] or [out, kept], ``codes`` uint8 and ``maxima`` float32 of the rest, ``places``
    int64 the kept rows or columns, ``others`` the rest's; ``bias`` [out] if there is one.  ``by_rows`` says which.
    What it computes is the dense linear of the same effective weights, up to the order of sums; ``dtype`` is that of
    the weights it was made of, to which the 4-bit branch is rounded as the dense one's is.
    """

    def __init__(self, in_features: int, out_features: int, places: torch.Tensor, *, by_rows: bool, dtype: torch.dtype,
                 bias: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.by_rows, self.dtype = in_features, out_features, by_rows, dtype
        half = sixteen_bit(dtype)
        along = out_features if by_rows else in_features
        others = torch.ones(along, dtype=torch.bool)
        others[places] = False
        rest = int(others.sum()) * (in_features if by_rows else out_features)
        shape = (len(places), in_features) if by_rows else (out_features, len(places))
        self.register_buffer("places", places.long())
        self.register_buffer("others", others.nonzero()[:, 0], persistent=False)
        self.register_buffer("kept", torch.zeros(shape, dtype=half))
        self.register_buffer("codes", torch.zeros(-(-rest // 2), dtype=torch.uint8))
        self.register_buffer("maxima", torch.zeros(-(-rest // BLOCK), dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype) if bias else None)

    @classmethod
    def of(cls, linear: nn.Linear, layer: LayerPlan) -> CircuitAwareLinear:
        """A linear in the split form of a plan."""
        weight = linear.weight.detach()
        keep = np.zeros(weight.shape, dtype=bool) if layer.keep is None else layer.keep
        by_rows = bool((keep == keep[:, :1]).all()) and not (keep == keep[:1]).all()
        rest = rest_of(weight, layer)
        places = torch.as_tensor(np.flatnonzero(keep[:, 0] if by_rows else keep[0]))
        module = cls(weight.shape[1], weight.shape[0], places, by_rows=by_rows, dtype=weight.dtype,
                     bias=linear.bias is not None).to(weight.device)
        module.kept.copy_(weight[module.places] if by_rows else weight[:, module.places])
        if len(rest):
            codes, maxima, _ = four_bit(rest, KIND)
            module.codes.copy_(codes.flatten())
            module.maxima.copy_(maxima)
        if linear.bias is not None:
            module.bias = linear.bias.detach().clone()
        return module

    def rest(self) -> torch.Tensor:
        """Ŵ of the 4-bit branch: [others, in] or [out, others]."""
        shape = (len(self.others), self.in_features) if self.by_rows else (self.out_features, len(self.others))
        if not self.codes.numel():
            return torch.zeros(shape, dtype=self.dtype, device=self.codes.device)
        return from_four_bit(self.codes[:, None], self.maxima, shape, kind=KIND, dtype=self.dtype)

    def weight(self) -> torch.Tensor:
        """Ŵ of both branches as one matrix [out, in], in the dtype that it was made of."""
        values = torch.empty(self.out_features, self.in_features, dtype=self.dtype, device=self.kept.device)
        lines = values if self.by_rows else values.t()
        kept, rest = self.kept.to(self.dtype), self.rest()
        lines[self.places] = kept if self.by_rows else kept.t()
        lines[self.others] = rest if self.by_rows else rest.t()
        return values

    def dense(self) -> nn.Linear:
        """A plain linear of the same effective weights."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, dtype=self.dtype)
        linear.weight.data = self.weight()
        if self.bias is not None:
            linear.bias.data = self.bias.clone()
        return linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y [..., out] of x [..., in]."""
        kept, rest = self.kept.to(x.dtype), self.rest().to(x.dtype)
        if self.by_rows:
            y = x.new_empty(*x.shape[:-1], self.out_features)
            y[..., self.places], y[..., self.others] = x @ kept.t(), x @ rest.t()
        else:
            y = x[..., self.places] @ kept.t() + x[..., self.others] @ rest.t()
        return y if self.bias is None else y + self.bias.to(x.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())


def split_model(model: nn.Module, layers: dict[str, LayerPlan]) -> nn.Module:
    """Put a :class:`CircuitAwareLinear` in the place of every linear that a plan stores in the split form.

    The weights must be those as loaded.  Raises UserError for a plan in another form.
    """
    for fqn, layer in layers.items():
        if layer.form != "split":
            raise UserError(f"{fqn} is stored in form {layer.form!r}; only the split form has two branches")
        parent, _, name = fqn.rpartition(".")
        setattr(model.get_submodule(parent), name, CircuitAwareLinear.of(model.get_submodule(fqn), layer))
    return model
