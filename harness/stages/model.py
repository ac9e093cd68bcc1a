"""One model of the grid: its identity first, its weights only when something must be computed.

A run whose every cell is stored never loads the weights: names, shapes and counts come from the model's configuration.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from core import demo_model
from core.architecture import find_blocks, find_linears, other_bits, rest_of_blocks
from core.errors import UserError
from core.forward import behaviour, watch
from core.model import (
    empty_model,
    load_model,
    load_tokenizer,
    model_ref,
    pick_device,
    pick_dtype,
    ready,
    resolve_model,
    stored_dtype,
)
from core.offload import Offload, Scratch, offload_of
from core.placement import Devices, parse_devices, placed
from core.plain import is_plain
from core.types import ModelRef
from harness.presets import BRIEF_MODELS, DEMO_MODEL
from quantization.apply import Originals
from quantization.kernels.columns import runs_fused
from quantization.packing.checkpoint import CARD, check_export, is_export
from quantization.packing.formats.packed import is_packed, load_checked
from quantization.packing.split import is_split, load_split

log = logging.getLogger(__name__)
KNOWN = (DEMO_MODEL, *BRIEF_MODELS)
MOST_REST = 0.05  # of the blocks' values may stay at full precision: convolutions, state spaces, routers, norms


def machine(device: torch.device) -> str:
    """The kind of device that did the arithmetic; part of the samples' identity.

    On a GPU the column loop's kernel rounds otherwise than PyTorch's loop.  Where AVX-512 has no instructions for bf16
    they are imitated, with other roundings, so such a CPU is another kind.
    """
    if device.type == "cuda":
        return f"cuda:{torch.cuda.get_device_name(device)}{'/kernel' if runs_fused(device) else ''}"
    if device.type != "cpu":
        return device.type
    kind, amx = torch.backends.cpu.get_cpu_capability(), torch.cpu._is_amx_tile_supported()
    imitated = kind == "AVX512" and not amx and not torch.cpu._is_avx512_bf16_supported()
    return f"cpu:{kind}{'+amx' if amx else '-without-bf16' if imitated else ''}"


class LazyModel:
    """A model, its tokenizer, its linears; everything on first use.

    ``on_load`` is told once, when the weights are there.
    """

    def __init__(self, name: str, base: Path, device: str = "auto", dtype: str = "auto", *, threads: int = 0,
                 grad_device: str | None = None, eval_device: str | None = None, offload: str = "off",
                 token: str | None = None, say=log.info):
        self.label, self.token, self.say = name, token, say
        demo = name.lower() in (DEMO_MODEL, demo_model.NAME.lower())
        self.where = str(demo_model.ensure_demo_model(base, say)) if demo else resolve_model(name, KNOWN)
        if is_export(self.where):
            check_loadable(self.where)
        self.device = pick_device(device)
        self.grad_devices = parse_devices(grad_device) if grad_device else (self.device,)
        self.eval_device = pick_device(eval_device) if eval_device else self.device
        self.offload = self._checked(offload)
        self.scratch = Scratch(base.parent / "offload") if offload == "disk" else None
        self.ref: ModelRef = model_ref(self.where, pick_dtype(dtype, self.device), token, KNOWN)
        self.threads = threads or os.cpu_count() or 1
        torch.set_num_threads(self.threads)
        self.machine, self.eval_machine = self._machine(self.device), self._machine(self.eval_device)
        kinds = [self._machine(device) for device in self.grad_devices]
        # how many equal devices share the blocks changes no number
        self.grad_machine = kinds[0] if len(set(kinds)) == 1 else "+".join(kinds)
        self.on_load: Callable[[nn.Module], None] = lambda module: None
        self.make_room: Callable[[], None] = lambda: None  # called before weights are loaded

    def _machine(self, device: torch.device) -> str:
        return machine(device) + (f"/{self.threads}t" if device.type == "cpu" else "")

    def _checked(self, offload: str) -> str:
        if offload != "off" and len(self.grad_devices) > 1:
            raise UserError(f"--offload is {offload!r} and --grad_device names {len(self.grad_devices)} devices, but "
                            "blocks are offloaded from one; name one, or leave out --offload")
        return offload

    @property
    def offloaded(self) -> bool:
        """Whether one block at a time is on the device."""
        return self.offload != "off"

    @property
    def devices(self) -> Devices:
        """All that the model lies on at some time."""
        return tuple(dict.fromkeys((self.device, *self.grad_devices, self.eval_device)))

    @property
    def machines(self) -> str:
        """What did the arithmetic of a result, in words: one machine, or who did what."""
        apart = {"gradients": self.grad_machine, "questions": self.eval_machine}
        return ", ".join([self.machine, *(f"{what} on {where}" for what, where in apart.items()
                                          if where != self.machine)])

    def on(self, *devices: torch.device) -> AbstractContextManager[None]:
        """The weights on other devices for a while, then where they were."""
        offload = offload_of(self.module)
        return offload.on(devices[0]) if offload else placed(self.module, self.blocks, devices, self.device)

    @cached_property
    def tokenizer(self):
        """The tokenizer alone; cheap, and needed to know what a cell is."""
        return load_tokenizer(self.where, self.ref, self.token)

    @cached_property
    def module(self) -> nn.Module:
        """The weights, loaded on first use."""
        module = self.put_to_rest(self.loaded())
        self.on_load(module)
        return module

    def put_to_rest(self, module: nn.Module) -> nn.Module:
        """A module that was loaded, with its blocks offloaded if that is asked for."""
        if self.offloaded:
            Offload(module, find_blocks(module)[1], self.device, self.scratch)
        return module

    def loaded(self) -> nn.Module:
        """The weights as the checkpoint has them, newly loaded; on the CPU if they are to be offloaded."""
        self.make_room()
        at_first = torch.device("cpu") if self.offloaded else self.device
        self.say(f"Loading {self.ref.name} ({self.ref.dtype}, {self.device}"
                 + (f", blocks offloaded to the {self.offload})" if self.offloaded else ")"))
        if is_split(self.where) or is_packed(self.where):
            load = load_split if is_split(self.where) else load_checked  # checked when it was named
            module = ready(load(Path(self.where), dense=True).to(at_first))
            for p in module.parameters():  # buffers keep their own type: rotary frequencies are float32
                p.data = p.data.to(getattr(torch, self.ref.dtype))
        else:
            module = load_model(self.where, self.ref, at_first, self.token)
            if not all(hasattr(linear, "weight") for linear in find_linears(module)[0].values()):
                with torch.no_grad():  # compressed-tensors unpacks weights when they are first used
                    module(torch.zeros(1, 1, dtype=torch.long, device=at_first))
        with watch(find_blocks(module)[1], lambda _block, _hidden: None):
            causal, module.rows_alone = behaviour(module, self.ref.name)
        if not causal:
            raise UserError(f"{self.ref.name} reads in both directions (its first logits change with a later token); "
                            "use a causal LM such as a llama, qwen or gemma")
        return module

    def release(self) -> None:
        """Free the weights; what is known of the model stays."""
        for name in ("originals", "linears", "blocks", "module"):
            self.__dict__.pop(name, None)
        if self.offloaded:
            gc.collect()  # blocks and their offload hold each other
        if any(device.type == "cuda" for device in self.devices):
            torch.cuda.empty_cache()

    @cached_property
    def linears(self) -> dict[str, nn.Linear]:
        return find_linears(self.module)[0]

    @cached_property
    def blocks(self) -> list[nn.Module]:
        return find_blocks(self.module)[1]

    @cached_property
    def originals(self) -> Originals:
        return Originals(self.linears, offload_of(self.module))

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model's modules without weights."""
        skeleton = empty_model(self.where, self.ref, self.token)
        share, names = rest_of_blocks(find_linears(skeleton)[0], find_blocks(skeleton)[1])
        if share > MOST_REST:
            raise UserError(f"{share:.0%} of the weights in the blocks of {self.ref.name} are in no linear (first: "
                            f"{names[0] if names else 'its norms'}) and would stay at full precision, more than the "
                            f"{MOST_REST:.0%} beside which bits can be compared; use a model with its matrices in "
                            "linears")
        return skeleton

    @cached_property
    def rest(self) -> tuple[float, list[str]]:
        """Of the blocks' values the share that is not quantized, 0 to 1, and its matrices by name (no norms)."""
        return rest_of_blocks(find_linears(self.skeleton)[0], find_blocks(self.skeleton)[1])

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """[out, in] of every quantized linear, by name: allocators go through them in this order."""
        return {fqn: tuple(linear.weight.shape) for fqn, linear in sorted(find_linears(self.skeleton)[0].items())}

    @cached_property
    def block_of(self) -> dict[str, int]:
        return dict(sorted(find_linears(self.skeleton)[1].items()))

    @cached_property
    def other(self) -> tuple[int, int]:
        """(stored bits, values) of all that is not a quantized weight."""
        return other_bits(self.skeleton, find_linears(self.skeleton)[0])

    @cached_property
    def loads_lazily(self) -> bool:
        """Whether weights stay in the checkpoint's file when they are loaded: it has them in the type and the form in
        which they are wanted.
        """
        return is_plain(self.skeleton) and stored_dtype(self.where, self.ref, self.token) == self.ref.dtype

    @cached_property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.skeleton.parameters())

    @cached_property
    def positions(self) -> int:
        """Tokens that the model takes at once, read where lm-evaluation-harness reads them; 2048 where none says."""
        configs = self.skeleton.config.get_text_config(), self.skeleton.config
        told = [getattr(config, name, None) for config in configs
                for name in ("n_positions", "max_position_embeddings", "n_ctx")]
        limit = self.tokenizer.model_max_length  # 10^30 where the tokenizer does not know
        return next((n for n in told if n), limit if limit < 10**9 else 2048)

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(self)

    @cached_property
    def weights(self) -> int:
        """Weights of the quantized linears."""
        return sum(rows * columns for rows, columns in self.shapes.values())


def configs_of(module: nn.Module) -> list:
    """The configurations that the model's parts hold: those of single layers where layers differ (Gemma 4)."""
    held = {id(part.config): part.config for part in module.modules() if getattr(part, "config", None) is not None}
    return list(held.values())


def _heads(config) -> int:
    """Query heads by a configuration; 0 where it has none, or a number for each layer."""
    try:
        heads = getattr(config, "num_attention_heads", None)
    except Exception:  # it says that layers differ; theirs are asked too
        return 0
    return heads if isinstance(heads, int) else max(heads) if isinstance(heads, (list, tuple)) and heads else 0


class Sizes:
    """The sizes of a model that estimates of memory and time need."""

    def __init__(self, model: LazyModel):
        config, head = model.skeleton.config.get_text_config(), model.skeleton.get_output_embeddings()
        shapes = model.shapes.values()
        self.parameters, self.linears = model.parameters, model.weights
        self.largest = max(rows * columns for rows, columns in shapes)
        self.widest_in = max(columns for _, columns in shapes)
        self.widest = max(max(shape) for shape in shapes)
        self.itemsize = getattr(torch, model.ref.dtype).itemsize
        self.blocks = max(model.block_of.values()) + 1
        each = [sum(p.numel() for p in block.parameters()) for block in find_blocks(model.skeleton)[1]]
        self.in_blocks, self.block = sum(each), max(each)  # parameters of all, of the largest
        embedded = (config.vocab_size, config.hidden_size)
        self.vocabulary, self.hidden = embedded if head is None else head.weight.shape
        # query heads of a block at most; state spaces have none
        heads = max([1, *(count for count in map(_heads, configs_of(model.skeleton)) if count)])
        # numbers a token and block: key and value, by the linears that make them where they have their usual names
        made = [rows for fqn, (rows, _) in model.shapes.items() if fqn.endswith((".k_proj", ".v_proj"))]
        self.cache = 2 * max(made, default=self.hidden)
        # heads whose whole [T, T] weights are held
        self.attention = heads if config._attn_implementation == "eager" else 0


def check_loadable(where: str) -> None:
    """Refuse an export that is not as it was written, or that another engine loads."""
    kind = check_export(where)["format"]
    if kind in ("mlx", "gguf"):
        raise UserError(f"{where!r} is an export in format {kind}, which its own engine loads ({CARD} says how); to "
                        "ask it questions here, export the row as hf or packed")


def check_finite(name: str, module: nn.Module) -> None:
    """Refuse weights with NaN or infinity, wherever in the model they are."""
    broken = [fqn for fqn, p in module.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise UserError(f"weights of {broken[0].removesuffix('.weight')} in {name} hold NaN or infinity ({len(broken)} "
                        "tensors); repair the checkpoint")


def check_positions(model: LazyModel, longest: int, what: str) -> None:
    """Refuse sequences that are longer than the model has positions for."""
    limit = getattr(model.skeleton.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise UserError(f"{what} is {longest} tokens long, but {model.ref.name} has {limit} positions "
                        "(max_position_embeddings); lower --max_length, --max_new_tokens or --calib_window")


def check_plain(model: LazyModel) -> None:
    """Refuse a checkpoint that is quantized already: its weights are not those that a method would quantize."""
    if is_split(model.where):
        raise UserError(f"{model.ref.name} is quantized already; scripts/evaluate.py asks it questions")
    if is_export(model.where):
        raise UserError(f"{model.ref.name} is a quantized model that was exported; ask it with --method fp16, or "
                        "quantize the model that it was made of")
    kind = getattr(model.skeleton.config, "quantization_config", None)
    if kind is not None:
        named = kind.get("quant_method") if isinstance(kind, dict) else getattr(kind, "quant_method", None)
        raise UserError(f"{model.ref.name} is quantized already "
                        f"({named or 'its config.json has a quantization_config'}); use the checkpoint in full "
                        "precision")
