"""Sums over calibration documents of the weights' gradients, streamed: never all gradients of a document at once.

    L_s = −mean over t in M_s of log p(x_t | x_<t),   M_s = positions t >= 1 whose own token has loss_mask True
    g_s = ∂L_s/∂W [out, in],   "abs" Σ_s |g_s|,  "square" Σ_s g_s²,  "sum" Σ_s g_s      float32

L_s is in nats.  One backward pass a document, batch 1, unpadded, in the order given, in eval mode; because each loss is
a mean, a long document weighs no more than a short one.  With a loss_mask of all True this is the loss of TaCQ (arXiv
2504.07389) and, squared, the Fisher diagonal of SqueezeLLM (arXiv 2306.07629).  Documents without a token to predict
are skipped and counted.

Memory beside the model and the activations: one float32 copy of the weights a kind, on the GPU while documents run if
it has four times that room, else on the CPU; the gradient of one weight, and of the logits one copy and their gradient.
A 16-bit model is widened in place to float32, which is exact both ways; narrowing holds the originals.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from core.errors import UserError
from core.forward import call, device_of, pad
from core.offload import Scratch, offload_of, scratch_of
from core.placement import beside
from core.types import CalibSet

KINDS = ("abs", "square", "sum")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALF = (torch.bfloat16, torch.float16)
SLICE = 2**24  # logits that the loss turns to float32 at a time: 64 MiB


@dataclass(frozen=True)
class GradientSums:
    """What one pass over the calibration set saw."""

    sums: dict[str, dict[str, torch.Tensor]]  # kind -> fqn -> float32 [out, in] on the CPU, no two in the same memory
    losses: tuple[float, ...]  # L_s of each document not skipped, nats
    skipped: int  # documents without a token to predict


class Snapshots:
    """Where the sums so far outlive a kill.  This one forgets; the harness hands over one that does not.

    sums: fqn -> kind -> float32 [out, in] on any device; a tied weight stands under its first name alone.
    """

    def resume(self, sums: dict[str, dict[str, torch.Tensor]]) -> tuple[int, list[float]]:
        """Fill ``sums``, which are zeros; returns how many documents are in them, and their losses."""
        return 0, []

    def after(self, done: int, losses: list[float], sums: dict[str, dict[str, torch.Tensor]]) -> None:
        """``done`` documents are in the sums now: keep them if it is time."""


def gradient_sums(model: nn.Module, linears: dict[str, nn.Linear], calib: CalibSet, kinds: tuple[str, ...] = KINDS,
                  grad_dtype: str = "float32", snapshots: Snapshots | None = None,
                  progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> GradientSums:
    """Sum the gradients of the linears' weights over ``calib``; the model is left as it was found."""
    todo, snapshots = _check(linears, calib, kinds, grad_dtype), snapshots or Snapshots()
    doc = next(iter(todo))
    try:
        with ExitStack() as state:
            state.enter_context(ready(model, [lin.weight for lin in linears.values()], DTYPES[grad_dtype]))
            buffers = state.enter_context(_streamed(linears, kinds, scratch_of(model)))
            first = {id(lin.weight): fqn for fqn, lin in reversed(linears.items())}
            so_far = {fqn: buffers[weight] for weight, fqn in first.items()}
            start, losses = snapshots.resume(so_far)
            for done, (doc, rows) in list(enumerate(todo.items()))[start:]:
                progress("gradients", done, len(todo))
                losses.append(_backward(model, calib, doc, rows, grad_dtype=grad_dtype))
                snapshots.after(done + 1, losses, so_far)
    except torch.OutOfMemoryError:
        raise UserError(f"the gradients of document {calib.doc_ids[doc]!r} ({len(calib.tokens[doc])} tokens) in "
                        f"{grad_dtype} do not fit on {device_of(model)}; use --grad_dtype bf16, shorter prompts or "
                        "--device cpu") from None
    progress("gradients", len(todo), len(todo))
    sums = _by_name(buffers, linears, kinds)
    _check_finite(sums, grad_dtype)
    return GradientSums(sums, tuple(losses), len(calib.tokens) - len(todo))


def _check(linears, calib: CalibSet, kinds: tuple[str, ...], grad_dtype: str) -> dict[int, np.ndarray]:
    """Refuse what cannot work; return the rows r of each document whose token r + 1 counts in the loss."""
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds of gradient sums {kinds} are not a choice of {KINDS}")
    if grad_dtype not in DTYPES:
        raise UserError(f"gradients can be taken in {', '.join(DTYPES)}, not in {grad_dtype!r}")
    for fqn, lin in linears.items():
        if not lin.weight.is_floating_point():
            raise UserError(f"{fqn} is stored as {lin.weight.dtype}, which has no gradient; load the model in bf16, "
                            "fp16 or fp32")
    if not calib.tokens:
        raise UserError(f"the calibration set of {calib.task} is empty; give at least one document (--calib_size)")
    if all(len(tokens) < 2 for tokens in calib.tokens):
        raise UserError(f"every one of the {len(calib.tokens)} calibration documents of {calib.task} has fewer than "
                        "two tokens, so none has a next token to predict; give longer documents")
    rows = {doc: np.flatnonzero(mask[1:]) for doc, mask in enumerate(calib.loss_mask)}
    todo = {doc: at for doc, at in rows.items() if len(at)}
    if not todo:
        raise UserError(f"loss_mask leaves no token to predict in any of the {len(calib.tokens)} calibration documents "
                        f"of {calib.task}; mark at least one token after a document's first")
    return todo


@contextmanager
def ready(model: nn.Module, weights: list[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """Eval mode, gradients of ``weights`` alone, floating parameters in ``dtype``; all of it undone on exit."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    training = [module for module in model.modules() if module.training]
    try:
        for p, _, _ in before:
            p.grad = None
        model.eval().requires_grad_(False)
        with computing_in(model, weights[0].dtype, dtype), torch.enable_grad():
            for weight in weights:
                weight.requires_grad_(True)
            yield
    finally:
        for module in training:
            module.training = True
        for p, wanted, grad in before:
            p.requires_grad_(wanted)
            p.grad = grad


@contextmanager
def computing_in(model: nn.Module, base: torch.dtype, dtype: torch.dtype) -> Iterator[None]:
    """Cast what is in the model's own type ``base`` to ``dtype`` in place, and back bit by bit.

    Parameters and buffers that a family keeps in another type (float32 rotary frequencies) stay as they are.
    """
    exact, offload = base in HALF and dtype == torch.float32, offload_of(model)
    resting = offload.ids if offload else ()  # cast block by block, when they come to work
    tensors = [*model.parameters(), *(model.buffers() if base in HALF else ())]
    undo: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    try:
        for tensor in tensors if base != dtype else ():
            if tensor.dtype == base and id(tensor) not in resting:
                undo.append((tensor, None if exact else tensor.data))
                tensor.data = tensor.data.to(dtype)
        with nullcontext() if offload is None else offload.in_type(base, dtype):
            yield
    finally:
        for tensor, held in undo:
            tensor.data = tensor.data.to(base) if held is None else held


@contextmanager
def each_gradient(weights: Sequence[nn.Parameter], take: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Hand every weight's gradient, on its device, to ``take``, with the weight's place, as soon as a backward pass
    has it, and drop it: one weight's ``grad`` lives at a time.
    """
    def hand_over(index: int, weight: nn.Parameter) -> None:
        grad, weight.grad = weight.grad, None
        take(index, grad)

    hooks = [weight.register_post_accumulate_grad_hook(lambda w, index=index: hand_over(index, w))
             for index, weight in enumerate(weights)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def zeros_for(weights: Sequence[torch.Tensor], kinds: tuple[str, ...],
              scratch: Scratch | None) -> list[dict[str, torch.Tensor]]:
    """float32 zeros of each weight's shape, one a kind: in files where these are given, else on its GPU or the CPU."""
    if scratch is not None:
        return [{kind: scratch.zeros(weight.shape, torch.float32) for kind in kinds} for weight in weights]
    return [{kind: torch.zeros(weight.shape, dtype=torch.float32, device=place) for kind in kinds}
            for weight, place in zip(weights, beside(weights, 4 * len(kinds)))]


@contextmanager
def _streamed(linears: dict[str, nn.Linear], kinds: tuple[str, ...],
              scratch: Scratch | None) -> Iterator[dict[int, dict[str, torch.Tensor]]]:
    """Yield id of a weight -> kind -> zeros that backward passes add to, in files where a scratch folder is given."""
    weights = list({id(lin.weight): lin.weight for lin in linears.values()}.values())  # a tied one comes once, whole
    sums = zeros_for(weights, kinds, scratch)
    with each_gradient(weights, lambda index, grad: _take(grad, sums[index])):
        yield {id(weight): own for weight, own in zip(weights, sums, strict=True)}


def _by_name(buffers: dict[int, dict[str, torch.Tensor]], linears: dict[str, nn.Linear],
             kinds: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
    """kind -> fqn -> sum; a tied weight's second name gets a copy, since a safetensors file refuses shared memory."""
    sums: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in kinds}
    named: set[int] = set()
    for fqn, lin in linears.items():
        for kind in kinds:
            own = buffers[id(lin.weight)][kind] = buffers[id(lin.weight)][kind].cpu()
            sums[kind][fqn] = own.clone() if id(lin.weight) in named else own
        named.add(id(lin.weight))
    return sums


@torch.no_grad()
def _take(grad: torch.Tensor, own: dict[str, torch.Tensor]) -> None:
    """Add a weight's gradient to its sums, wherever these lie."""
    grad = grad.to(next(iter(own.values())).device).float()
    if "sum" in own:
        own["sum"].add_(grad)
    if "square" in own:
        own["square"].addcmul_(grad, grad)
    if "abs" in own:
        own["abs"].add_(grad.abs_())  # in place, and so last


def _backward(model: nn.Module, calib: CalibSet, doc: int, rows: np.ndarray, grad_dtype: str) -> float:
    """One document's loss, in nats, after its backward pass."""
    device = device_of(model)
    ids, mask = pad([calib.tokens[doc]], device)
    at = torch.from_numpy(rows).to(device)
    # no name keeps the logits
    loss = _MeanCrossEntropy.apply(call(model, ids, mask, last_only=False).logits[0], at, ids[0, at + 1])
    value = float(loss.detach())
    if not np.isfinite(value):
        raise UserError(f"the loss of calibration document {calib.doc_ids[doc]!r} is {value} in {grad_dtype}; "
                        + ("the weights are broken, load the model anew" if grad_dtype
                           == "float32" else "use --grad_dtype fp32"))
    loss.backward()
    return value


class _MeanCrossEntropy(torch.autograd.Function):
    """Mean of −log softmax(logits[row])[target] over rows, in float32 slice by slice.

    The gradient with respect to the logits is made at once and released as soon as the head has used it; autograd's own
    cross-entropy would hold two more copies of the logits.
    """

    @staticmethod
    def forward(ctx, logits, rows, targets):
        grad, total = torch.zeros_like(logits), torch.zeros((), dtype=torch.float64, device=logits.device)
        count = max(1, SLICE // logits.shape[1])
        for at, target in zip(rows.split(count), targets.to(logits.device).split(count)):
            at, target = at.to(logits.device), target[:, None]
            logp = logits[at].float().log_softmax(-1)
            total -= logp.gather(1, target).sum(dtype=torch.float64)
            minus_one = torch.full_like(target, -1, dtype=logp.dtype)
            grad[at] = logp.exp_().scatter_add_(1, target, minus_one).div_(len(rows)).to(grad.dtype)
        ctx.save_for_backward(grad)
        return total / len(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, seed):
        (grad,) = ctx.saved_tensors
        return grad.mul_(seed.to(grad.dtype)), None, None


def _check_finite(sums: dict[str, dict[str, torch.Tensor]], grad_dtype: str) -> None:
    """16-bit gradients can overflow: say where, rather than rank by infinity."""
    for kind, by_name in sums.items():
        for fqn, value in by_name.items():
            if not torch.isfinite(value).all():
                broken = "the weights are broken, load the model anew"
                mend = broken if grad_dtype == "float32" else "use --grad_dtype fp32"
                raise UserError(f"the {kind} of gradients of {fqn} is not finite in {grad_dtype}; {mend}")
