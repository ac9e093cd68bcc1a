"""Two changes of a model that are folded into its weights, so that it computes what it did and quantizes better.

smooth (SmoothQuant, arXiv 2211.10438, eq. 4): each channel j of a norm's output, read by linears W₁, W₂, … together,

    s_j = max |x_j|^α / max_{k, i} |W_k,ij|^(1 − α)     γ_j ← γ_j / s_j     W_k,ij ← W_k,ij s_j

with max |x_j| over calibration tokens; o and down, which read no norm, stay as they are.

hadamard (QuaRot, arXiv 2404.00456, §4): the hidden state h becomes h Q with a random Hadamard rotation Q by the seed.
Norms give up their gains to the linears that read them (W ← W diag(γ) Q), writers turn their outputs (W ← Qᵀ W),
embeddings become E Q, the head W diag(γ) Q: one that shares the embeddings' weights gets its own.  A LayerNorm first
gives up its mean, which embeddings and writers no longer write, and becomes a norm by the root mean square.  Values
turn within each head (rows of v, columns of o).  Every other writer, such as down, has its input turned while the
model runs, W ← W Q: no weight before it could take the turn.  Not done here: QuaRot's turn of queries and keys after
their positions, and of heads among each other, which would no longer be heads.

The arithmetic is float64, the result in the weights' own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from core.architecture import find_heads
from core.errors import UserError
from core.forward import call
from quantization.transforms.hadamard import Rotation, rotation
from quantization.transforms.parts import Norm, Parts, find_parts, probe_ids

LEAST = 1e-5  # of a scale or a range
SAME = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}  # relative change of logits that is rounding
ROWS = 8192  # of an embedding turned at a time


@torch.no_grad()
def smooth(model: nn.Module, maxima: Mapping[str, torch.Tensor], alpha: float) -> None:
    """Fold SmoothQuant's scales into norms and weights; ``maxima``: max |x| [in] of every linear by full name.

    Raises UserError where that would change what the model computes, and leaves it changed.
    """
    before, parts = logits(model), find_parts(model)
    for norm in parts.norms:
        linears = [model.get_submodule(fqn) for fqn in norm.readers if fqn != parts.head]
        if not linears or parts.head in norm.readers:
            continue
        x = maxima[norm.readers[0]].double().to(linears[0].weight.device).clamp(min=LEAST)
        w = torch.stack([linear.weight.abs().amax(0).double() for linear in linears]).amax(0).clamp(min=LEAST)
        scale = (x**alpha / w ** (1 - alpha)).clamp(min=LEAST)
        gain, one_less = norm.gain()
        norm.put(gain / scale, one_less)
        if getattr(norm.module, "bias", None) is not None:
            norm.module.bias.data = (norm.module.bias.double() / scale).to(norm.module.bias.dtype)
        for linear in linears:
            _put(linear.weight, lambda rows, s=scale: rows * s)
    _check_same(model, before, "smooth")


@torch.no_grad()
def rotate(model: nn.Module, seed: int) -> None:
    """Rotate the hidden states, the values of each head and the inputs of down.

    Raises UserError where that would change what the model computes, or no rotation has a width, and leaves it changed.
    """
    before, parts = logits(model), find_parts(model)
    _check_foldable(model, parts)
    heads = _heads(model, parts)
    turn = rotation(model.get_input_embeddings().embedding_dim, seed)
    inner = {fqn: rotation(model.get_submodule(fqn).in_features) for fqn in parts.writers
             if fqn not in {one.o for one in heads}}
    structure(model)
    centred = any(isinstance(norm.module, nn.LayerNorm) for norm in parts.norms)
    for norm in parts.norms:
        _fold(model, norm)
    for embedding in parts.embeddings:
        _put(embedding.weight, lambda rows: turn.turn(_centred(rows, centred)))
    for fqn in {fqn for norm in parts.norms for fqn in norm.readers} | {parts.head}:
        _put(model.get_submodule(fqn).weight, turn.turn)
    for fqn in parts.writers:
        linear = model.get_submodule(fqn)
        linear.weight.data = turn.turn(_centred(linear.weight.double().t(), centred)).t().to(linear.weight.dtype)
        if linear.bias is not None:
            linear.bias.data = turn.turn(_centred(linear.bias.double(), centred)).to(linear.bias.dtype)
    for one in heads:
        _turn_values(model, one, rotation(one.width))
    for fqn, own in inner.items():
        linear = model.get_submodule(fqn)
        _put(linear.weight, own.turn)
        linear.register_forward_pre_hook(turning(own))
    _check_same(model, before, "hadamard")


@torch.no_grad()
def fold_gains(model: nn.Module) -> None:
    """The first step of :func:`rotate` alone, for models without LayerNorms: what folding costs before anything turns.
    """
    parts = find_parts(model)
    _check_foldable(model, parts)
    structure(model)
    for norm in parts.norms:
        _fold(model, norm)


@torch.no_grad()
def structure(model: nn.Module) -> None:
    """What :func:`rotate` adds and takes away, without its numbers, so also of a model without weights: a head of its
    own, its bias if the last norm has one, norms by the root mean square.
    """
    width, head = model.get_input_embeddings().embedding_dim, model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.LayerNorm) or tuple(module.normalized_shape) != (width,):
            continue
        if module.bias is not None and head.bias is None:
            head.bias = nn.Parameter(torch.zeros(head.out_features, dtype=head.weight.dtype, device=head.weight.device),
                                     requires_grad=False)
        other = nn.RMSNorm(width, eps=module.eps, dtype=head.weight.dtype, device=head.weight.device)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, other.eval().requires_grad_(False))


def turning(own: Rotation) -> Callable:
    """A hook that turns what its linear reads, in float32."""
    def change(_module, args):
        return (own.turn(args[0].float()).to(args[0].dtype), *args[1:])
    return change


def _fold(model: nn.Module, norm: Norm) -> None:
    """Move a norm's gain and bias into the linears that read it; a LayerNorm has been replaced in the model."""
    gain, one_less = norm.gain()
    shift = getattr(norm.module, "bias", None)
    for fqn in norm.readers:
        linear = model.get_submodule(fqn)
        if shift is not None:
            linear.bias.data = (linear.bias.double() + linear.weight.double() @ shift.double()).to(linear.bias.dtype)
        _put(linear.weight, lambda rows: rows * gain)
    if not isinstance(norm.module, nn.LayerNorm):
        norm.put(torch.ones_like(gain), one_less)


def _turn_values(model: nn.Module, one, own: Rotation) -> None:
    """Turn each head's values at the rows of v, and undo it at the columns of o."""
    v, o = model.get_submodule(one.v), model.get_submodule(one.o)
    v.weight.data = own.turn(v.weight.double().t().unflatten(-1, (-1, one.width))).flatten(-2).t().to(v.weight.dtype)
    if v.bias is not None:
        v.bias.data = own.turn(v.bias.double().view(-1, one.width)).flatten().to(v.bias.dtype)
    _put(o.weight, lambda rows: own.turn(rows.unflatten(-1, (-1, one.width))).flatten(-2))


def _centred(rows: torch.Tensor, wanted: bool) -> torch.Tensor:
    """Rows [.., d] without their mean, which a LayerNorm would take away."""
    return rows - rows.mean(-1, keepdim=True) if wanted else rows


def _put(weight: nn.Parameter, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a weight [rows, in] in float64, some rows at a time."""
    changed = [change(rows.double()).to(weight.dtype) for rows in weight.data.split(ROWS)]
    weight.data = torch.cat(changed).contiguous()


def _heads(model: nn.Module, parts: Parts) -> list:
    """The attention of every block, or nothing where its values are no linear of their own: o is then a writer whose
    input turns while the model runs.
    """
    try:
        heads = find_heads(model)
    except UserError:
        return []
    return [one for one in heads if one.o in parts.writers]


def _check_foldable(model: nn.Module, parts: Parts) -> None:
    """Every norm of the hidden state hands all it has to linears."""
    kind = type(model).__name__
    for norm in parts.norms:
        if not norm.readers:
            raise UserError(f"the norm {norm.path} of {kind} is read by no linear, so its gain cannot be folded and "
                            "hidden states cannot be rotated; use --transform smooth or none")
        norm.gain()
        bare = [fqn for fqn in norm.readers if model.get_submodule(fqn).bias is None and fqn != parts.head]
        if getattr(norm.module, "bias", None) is not None and bare:
            raise UserError(f"the norm {norm.path} of {kind} has a bias, which {bare[0]} has no bias to take up, so "
                            "hidden states cannot be rotated; use --transform smooth or none")


def logits(model: nn.Module) -> torch.Tensor:
    """Float32 logits [TOKENS, vocabulary] of a few tokens."""
    ids = probe_ids(model)
    return call(model, ids, torch.ones_like(ids), last_only=False).logits[0].float()


def _check_same(model: nn.Module, before: torch.Tensor, what: str) -> None:
    """Refuse a change that was not folded rightly, in a family whose parts are other than they seem."""
    change = float((logits(model) - before).norm() / (before - before.mean(-1, keepdim=True)).norm())
    allowed = SAME[next(model.parameters()).dtype]
    if not change <= allowed:
        raise UserError(f"{what} changes what {type(model).__name__} computes: logits differ by {change:.2g} of their "
                        f"spread, where rounding allows {allowed:g}; use --transform none")
