"""One way to call any causal LM on left-padded prompts, and to watch or replace its blocks' outputs."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from core.errors import UserError, one_line


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class of its own; the CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def device_of(model: nn.Module) -> torch.device:
    """Return where token ids must lie."""
    return model.get_input_embeddings().weight.device


def pad(rows: Sequence[Sequence[int]], device, left: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack token rows to ids int64 [B, T] and their mask (1 = a real token).

    Padding is id 0, which exists in every vocabulary and which the mask hides.
    """
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.as_tensor(np.asarray(row), dtype=torch.long), 1
    return ids.to(device), mask.to(device)


@lru_cache(maxsize=32)
def _accepted(kind: type) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def call(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None = None, *,
         last_only: bool = True, last: int = 1, **more):
    """Run any causal LM on ids [B, T]; mask [B, S] also covers what a cache holds.

    Positions default to counting real tokens. Families differ in what their forward takes (e.g. no position_ids with
    ALiBi), so only what the signature names is passed.  ``last_only`` lets the head run at the ``last`` positions alone
    (a family that cannot gives the logits of all).
    """
    names = _accepted(type(model))
    extra = {"use_cache": False} | more
    if "position_ids" in names:
        extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1]:] if positions is None else positions
    if last_only and "logits_to_keep" in names:
        extra["logits_to_keep"] = last
    return model(input_ids=ids, attention_mask=mask, **extra)


PROBE = 8  # tokens that ``behaviour`` runs
# relative change of logits that is rounding: of runs of the same shapes (experts may be grouped otherwise), of others
NOISE, NOISE_16 = (1e-5, 1e-4), (0.1, 0.1)  # in float32, in 16 bits


def behaviour(model: nn.Module, name: str = "the model") -> tuple[bool, bool]:
    """(causal: a token changes no logits before it; alone: each row must run alone), from a few short runs.

    Rows run alone where the model returns no key-value cache, where padding changes a row's logits though the mask
    hides it, and where several tokens after a cached beginning, with padding between, get other logits than at once:
    recurrent families read the padding, or go on from a state one token at a time only.  Raises UserError for a model
    whose own code fails on so short a text.
    """
    try:
        return _behaviour(model)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a family's own code raises
        raise UserError(f"{name} does not run on a short text ({type(error).__name__}: {one_line(error)}); see whether "
                        "its config.json belongs to its weights, or use another family") from None


@torch.no_grad()
def _behaviour(model: nn.Module) -> tuple[bool, bool]:
    device, top = device_of(model), model.get_input_embeddings().weight.shape[0] - 1
    ids = torch.arange(3, 3 + PROBE, device=device)[None].clamp(max=top)
    ones = torch.ones_like(ids)
    plain = call(model, ids, ones, last_only=False, use_cache=True)
    other, logits = ids.clone(), plain.logits.float()
    other[0, -1] = ids[0, 0]
    if not torch.isfinite(logits).all():  # broken weights, which who loads them names
        return True, False
    same, near = NOISE if plain.logits.dtype == torch.float32 else NOISE_16

    def differ(theirs: torch.Tensor, ours: torch.Tensor, noise: float = near) -> bool:
        return not float((theirs.float() - ours).abs().max()) <= noise * (float(logits.abs().max()) or 1.0)

    causal = not differ(call(model, other, ones, last_only=False).logits[:, :-1], logits[:, :-1], same)
    if not causal or getattr(plain, "past_key_values", None) is None:
        return causal, True
    hole, half = ids.new_zeros(1, 3), PROBE // 2
    padded = call(model, torch.cat([hole, ids], 1), torch.cat([hole, ones], 1), last_only=False).logits
    if differ(padded[:, 3:], logits):
        return causal, True
    begun = call(model, ids[:, :half], ones[:, :half], use_cache=True).past_key_values
    positions = torch.arange(half - len(hole[0]), PROBE, device=device)[None].clamp(min=half)
    after = call(model, torch.cat([hole, ids[:, half:]], 1), torch.cat([ones[:, :half], hole, ones[:, half:]], 1),
                 positions, last_only=False, past_key_values=begun, use_cache=True).logits
    return causal, differ(after[:, 3:], logits[:, half:])


def hidden_of(output) -> torch.Tensor:
    """The hidden states [B, T, d] of a block's output, whether it returns a tensor or a tuple."""
    return output if torch.is_tensor(output) else output[0]


@contextmanager
def watch(blocks: Sequence[nn.Module], see: Callable[[int, torch.Tensor], None]):
    """Call ``see(block index, hidden states)`` after each block; hooks are gone on exit.

    Yields a dict that comes to hold, per block, 0 if it returns a tensor, else the length of its tuple.
    """
    widths: dict[int, int] = {}

    def hook(at: int):
        def note(module, _inputs, out):
            if not torch.is_tensor(out) and type(out) not in (tuple, list):
                raise UserError(f"blocks of class {type(module).__name__} hand over more than hidden states, so they "
                                "cannot be run one by one; use another family")
            widths[at] = 0 if torch.is_tensor(out) else len(out)
            see(at, hidden_of(out))
        return note

    hooks = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
        yield widths
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def inputs_of(linears: list[nn.Linear], see: Callable[[int, torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Call ``see(number, x [B, T, in])`` before each linear; what it returns, if anything, is read in its place."""
    def hook(number: int):
        def change(_module, args):
            other = see(number, args[0])
            return None if other is None else (other, *args[1:])
        return change

    with ExitStack() as hooks:
        for number, linear in enumerate(linears):
            hooks.callback(linear.register_forward_pre_hook(hook(number)).remove)
        yield


@contextmanager
def skip_to(blocks: Sequence[nn.Module], at: int, hidden: torch.Tensor, width: int = 0):
    """Make blocks 0..at cheap, as if block ``at`` had returned ``hidden`` [B, T, d], in a tuple of ``width`` if any."""
    held, output = [], (hidden, *[None] * (width - 1)) if width else hidden
    for block in blocks[: at + 1]:
        held.append(block.__dict__.get("forward"))
        block.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for block, old in zip(blocks, held):
            if old is None:
                del block.forward
            else:
                block.forward = old
