"""Where a model lies: on one device, or its blocks shared out over several for the time that something needs it.

On several devices the embeddings, the last norm and the head stay on the first, so token ids go in and logits come out
there; each block lies whole on one device, and what it is called with is moved there.  Neighbouring blocks lie
together, so a forward pass crosses from one device to the next once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from core.errors import UserError
from core.model import pick_device

Devices = tuple[torch.device, ...]


def parse_devices(text: str) -> Devices:
    """The devices called "cpu", "cuda", "cuda:1", or several: "cuda:0,1", "cuda:0,cpu".

    Raises UserError for a device that is not there, and for one that is named twice.
    """
    names = [f"cuda:{name}" if name.isdecimal() else name for name in text.split(",")]
    devices = tuple(map(pick_device, names))
    twice = [name for i, name in enumerate(names) if devices[i] in devices[:i]]
    if twice:
        raise UserError(f"device {twice[0]!r} stands twice in {text!r}; name each once")
    return devices


def shares(model: nn.Module, blocks: Sequence[nn.Module], count: int) -> list[int]:
    """The device, 0 to count − 1, of every block: neighbours together, about as many bytes on each device.

    What is outside the blocks (embeddings, head) lies on device 0 and counts there.
    """
    def size(module: nn.Module) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters())

    sizes = [size(block) for block in blocks]
    before, total = size(model) - sum(sizes), size(model)
    places = []
    for own in sizes:  # a block lies where its middle falls
        places.append(min(count - 1, int((before + own / 2) * count / total)))
        before += own
    return places


def beside(weights: Sequence[torch.Tensor], bytes_each: float) -> list[torch.device]:
    """Where ``bytes_each`` more bytes a weight are to lie, by weight: on its GPU if that has room, else on the CPU."""
    near = has_room(weights, bytes_each)
    return [weight.device if near else torch.device("cpu") for weight in weights]


def has_room(tensors: Iterable[torch.Tensor], bytes_each: float) -> bool:
    """Whether the GPUs that hold these weights have four times the room for ``bytes_each`` more bytes a weight.

    Never of the CPU, whose memory cannot be asked.
    """
    wanted: dict[torch.device, float] = {}
    for tensor in tensors:
        wanted[tensor.device] = wanted.get(tensor.device, 0) + bytes_each * tensor.numel()
    return all(device.type == "cuda" and 4 * size <= _free(device) for device, size in wanted.items())


def _free(device: torch.device) -> int:
    """Bytes that a GPU has free, among them those that PyTorch holds and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


@contextmanager
def placed(model: nn.Module, blocks: Sequence[nn.Module], devices: Devices, home: torch.device) -> Iterator[None]:
    """The model on these devices; on exit it is at ``home`` again, without hooks.

    Parameters stay the same objects, so what holds them (linears, sums by weight) goes on holding them.
    """
    hooks = []
    try:
        if len(devices) == 1 and devices != (home,):
            model.to(devices[0])
        if len(devices) > 1:
            places = [devices[at] for at in shares(model, blocks, len(devices))]
            check_apart(blocks, places, "shared out over several devices; name one device")
            move_rest(model, blocks, devices[0])
            for block, device in zip(blocks, places):
                block.to(device)  # straight there: the first device need not hold them all
                hooks.append(block.register_forward_pre_hook(_bring(device), with_kwargs=True))
            hooks += [block.register_forward_hook(_take_back(devices[0])) for block in blocks[-1:]]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if devices != (home,):
            model.to(home)
            if any(device.type == "cuda" for device in devices):
                torch.cuda.empty_cache()


def move_rest(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Move what is in no block: embeddings, norms, head, rotary frequencies."""
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        if id(module) in inside:
            continue
        for p in module.parameters(recurse=False):
            p.data = p.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def mapped(value, change: Callable[[torch.Tensor], object], other: Callable[[object], object] = lambda value: value):
    """``value`` with ``change`` of every tensor in it, also in tuples, lists and dicts, in order, and ``other`` of the
    rest, among it containers of classes of their own.
    """
    if torch.is_tensor(value):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(mapped(one, change, other) for one in value)
    if type(value) is dict:
        return {name: mapped(one, change, other) for name, one in value.items()}
    return other(value)


def moved(value, device: torch.device):
    """``value`` with every tensor in it on the device."""
    return mapped(value, lambda tensor: tensor.to(device))


def _bring(device: torch.device):
    return lambda _block, args, kwargs: (moved(args, device), moved(kwargs, device))


def _take_back(device: torch.device):
    return lambda _block, _args, output: moved(output, device)


def check_apart(blocks: Sequence[nn.Module], places: Sequence, what: str) -> None:
    """A weight that two blocks share can lie in one place only."""
    lies: dict[int, object] = {}
    for block, place in zip(blocks, places):
        if any(lies.setdefault(id(p), place) != place for p in block.parameters()):
            raise UserError(f"blocks of this model share weights, so they cannot be {what}")
