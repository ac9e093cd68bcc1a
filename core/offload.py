"""A model that does not fit: its blocks rest on the CPU, or in a file, and are on the device only while they run.

    at rest     every block's parameters, on the CPU or in a file without a name that the system pages in and out
    at work     the block that runs: its parameters on the device, in the type that is computed in
    always      embeddings, last norm, head and all buffers, on the device

A pass without gradients brings one block after another.  A pass with gradients holds no block either: what entered
each block waits on the CPU, and the backward pass runs the block again when its turn comes, from the last to the first
(Chen et al. 2016, arXiv 1604.06174).  The same operations run in the same order, so no number changes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

from core.errors import UserError, one_line
from core.placement import check_apart, mapped, move_rest

ALIGNED = 64  # bytes at which a tensor begins
MOST_SHARED = 2**30  # bytes of a file of which tensors are cut; the first is as large as the first tensor


class Scratch:
    """Tensors whose memory is a file.  It has no name once it is mapped, so that a killed process leaves nothing."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = torch.empty(0, dtype=torch.uint8)  # the last one, of which tensors are cut
        self.used = self.whole = 0  # bytes of it, of all files so far

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of zeros; of many small ones (experts) some share a file, for a process may map 65,530.

        Raises UserError where the disk is full: a page that cannot be written later would end the process.
        """
        count = torch.Size(shape).numel()
        size = -(-count * dtype.itemsize // ALIGNED) * ALIGNED
        if self.used + size > len(self.file):
            self.file = self._file(max(size, min(self.whole, MOST_SHARED)))
            self.used = 0
        start, self.used = self.used, self.used + size
        return self.file[start:start + count * dtype.itemsize].view(dtype).reshape(tuple(shape))

    def _file(self, size: int) -> torch.Tensor:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder)
        try:
            os.posix_fallocate(handle, 0, size)
            mapped = torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
        except (OSError, RuntimeError) as error:  # torch's where it cannot be mapped
            raise UserError(f"{self.folder} has no room for {size / 1e9:.2f} GB more ({one_line(error)}); free some or "
                            "use --cache_dir") from None
        finally:
            os.close(handle)
            os.unlink(name)
        self.whole += size
        return mapped

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor's values in a file of their own."""
        return self.zeros(tensor.shape, tensor.dtype).copy_(tensor.detach())


class Offload:
    """The blocks of a model while they are offloaded; ``model.offload`` is this."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], device: torch.device,
                 scratch: Scratch | None = None):
        """``model`` is on the CPU and stays so; scratch: where blocks rest, if not in the CPU's memory."""
        check_apart(blocks, range(len(blocks)), "offloaded; leave out --offload")
        self.model, self.blocks, self.device, self.scratch = model, list(blocks), device, scratch
        self.parameters = [list(block.parameters()) for block in self.blocks]
        self.at_rest: list[list[torch.Tensor]] = [[] for _ in self.blocks]  # of those at work
        self.running = [0] * len(self.blocks)  # how many hold a block at work
        self.computing: tuple[torch.dtype, torch.dtype] | None = None  # from which type to which
        for p in (p for own in self.parameters if scratch is not None for p in own):
            p.data = scratch.copy(p.data)
        self._move_others()
        for index, block in enumerate(self.blocks):
            block.forward = partial(self._forward, index, block.forward)
        model.offload = self

    @property
    def ids(self) -> set[int]:
        """Of all parameters that are offloaded."""
        return {id(p) for own in self.parameters for p in own}

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Another device to work on for a while."""
        home, self.device = self.device, device
        try:
            self._move_others()
            yield
        finally:
            self.device = home
            self._move_others()
            if device.type == "cuda" and device != home:
                torch.cuda.empty_cache()

    @contextmanager
    def in_type(self, base: torch.dtype, dtype: torch.dtype) -> Iterator[None]:
        """Blocks whose parameters are of type ``base`` come to work in ``dtype``."""
        before, self.computing = self.computing, (base, dtype)
        try:
            yield
        finally:
            self.computing = before

    @contextmanager
    def at_work(self, index: int, written: bool = False) -> Iterator[None]:
        """A block's parameters on the device; written: what the linears hold in the end is what rests afterwards."""
        own, done = self.parameters[index], False
        self.running[index] += 1
        try:
            if self.running[index] == 1:
                self.at_rest[index] = [p.data for p in own]
                for p in own:
                    p.data = self._brought(p.data)
            yield
            done = True
        finally:
            self.running[index] -= 1
            if not self.running[index]:
                for p, rest in zip(own, self.at_rest[index], strict=True):
                    if written and done and p.data_ptr() != rest.data_ptr() and p.dtype == rest.dtype:
                        rest.copy_(p.data)
                    p.data = rest
                self.at_rest[index] = []

    def _brought(self, rest: torch.Tensor) -> torch.Tensor:
        base, dtype = self.computing or (None, None)
        there = rest.to(self.device)  # first, so that the device casts
        return there.to(dtype) if rest.dtype == base else there

    def _move_others(self) -> None:
        move_rest(self.model, self.blocks, self.device)
        for block in self.blocks:
            for module in block.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    module._buffers[name] = buffer.to(self.device)

    def _forward(self, index: int, forward, *args, **kwargs):
        if torch.is_grad_enabled() and not self.running[index]:
            given = _tensors((args, kwargs))
            if any(t.requires_grad for t in (*self.parameters[index], *given)):
                run = _Run(self, index, forward, args, kwargs)
                found = _Recomputed.apply(run, torch.empty(0, requires_grad=True), *given)
                return _filled(run.output, iter(found))  # of the form that the call just had
        with self.at_work(index):
            return forward(*args, **kwargs)


class _Run:
    """One call of a block: to run it, with or without gradients, on other tensors in the places of its own."""

    def __init__(self, offload: Offload, index: int, forward, args: tuple, kwargs: dict):
        self.offload, self.index, self.forward = offload, index, forward
        self.given = _hollow((args, kwargs))
        self.output = None  # what the block returned, with holes in the places of tensors

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        args, kwargs = _filled(self.given, iter(tensors))
        output = self.forward(*args, **kwargs)
        self.output = _hollow(output)
        return _tensors(output)


class _Recomputed(torch.autograd.Function):
    """A block that is run again in the backward pass, where its weights' gradients go to who waits for them."""

    @staticmethod
    def forward(ctx, run: _Run, _marker: torch.Tensor, *tensors: torch.Tensor):
        ctx.run, ctx.device = run, run.offload.device
        ctx.set_materialize_grads(False)
        # hidden states wait on the CPU; masks and positions are the same for all blocks
        ctx.save_for_backward(*(t.cpu() if t.requires_grad else t for t in tensors))
        with run.offload.at_work(run.index):
            return tuple(t.clone() if any(t is given for given in tensors) else t for t in run(tensors))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        run, wanted = ctx.run, ctx.needs_input_grad[2:]
        inputs = [(t.detach().to(ctx.device) if want else t.detach()).requires_grad_(want)
                  for t, want in zip(ctx.saved_tensors, wanted, strict=True)]
        with run.offload.at_work(run.index):
            with torch.enable_grad():
                outputs = run(inputs)
            pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True)
                     if output.requires_grad and grad is not None]
            if pairs:
                torch.autograd.backward(*zip(*pairs))
        return None, None, *(t.grad if want else None for t, want in zip(inputs, wanted))


HOLE = torch.empty(0)  # stands where a tensor was, so that nothing holds it


def _tensors(value) -> list[torch.Tensor]:
    """The tensors in a value, also in tuples, lists and dicts, of whatever class, in order."""
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for one in value for t in _tensors(one)]
    return [t for one in value.values() for t in _tensors(one)] if isinstance(value, dict) else []


def _hollow(value):
    """A value with holes in the places of its tensors."""
    def without_tensors(rest):
        if _tensors(rest):
            raise UserError(f"blocks of this model hand over tensors in a {type(rest).__name__}, so they cannot be "
                            "offloaded where gradients are taken; leave out --offload")
        return rest

    return mapped(value, lambda _tensor: HOLE, without_tensors)


def _filled(hollow, tensors: Iterator[torch.Tensor]):
    """A value with the next tensors in its holes."""
    return mapped(hollow, lambda _hole: next(tensors))


def offload_of(model: nn.Module) -> Offload | None:
    """How a model is offloaded, if it is."""
    return getattr(model, "offload", None)


def at_work(model: nn.Module, index: int, written: bool = True):
    """A block's parameters on the device while it is solved, in a model that is offloaded; nothing in another."""
    offload = offload_of(model)
    return nullcontext() if offload is None else offload.at_work(index, written)


def scratch_of(model: nn.Module) -> Scratch | None:
    """Where what is as large as the model may lie, if not in memory."""
    return getattr(offload_of(model), "scratch", None)


def copied(tensor: torch.Tensor, scratch: Scratch | None) -> torch.Tensor:
    """A copy on the CPU, or in a file where a scratch folder is given."""
    return tensor.to("cpu", copy=True) if scratch is None else scratch.copy(tensor)


def set_aside(model: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """One of many tensors that together are as large as the model: on the CPU, or in files where its blocks rest so."""
    scratch = scratch_of(model)
    return tensor.cpu() if scratch is None else scratch.copy(tensor)
