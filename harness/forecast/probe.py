"""Seconds of the parts of a cell, from one decoder block of the model's own architecture with random weights.

No weights of the model are read.  The block is as wide as the model's, in its dtype, on its device; the vocabulary is
small, and the head is timed by itself as what it is: one matrix product and one log-softmax.  Every timing is
the least of up to three repetitions after a first one that is thrown away, and the load is cut so that all
repetitions together take about half a second.
"""

import copy
import math
import time
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from core import forward
from core.architecture import find_blocks, find_linears
from core.model import DTYPES
from core.plain import make_plain
from core.registry import QUANTIZERS
from core.types import Aid, CalibSet, LayerPlan
from evaluation.engine.kv_cache import call, expand, prefill
from harness.stages.model import LazyModel
from quantization.bits import layer_bits
from streams.gradients import gradient_sums

VOCABULARY = 256
SECONDS = 0.15  # of one repetition
HEAD = 32768  # columns of the head that are timed
SOLVED = 256  # columns of a linear that are timed
MOVED = 2**24  # bytes that are moved at a time
SHORT = 8  # tokens of a document whose backward pass is mostly that of its gradients
# rows of it on a CPU, whose time goes with the number of weights; a GPU waits for its launches, so there all rows
ROWS = 512
# a whole model's products run slower than one alone, which stays in the caches; only where no block can be built
OVERHEAD = 3


def one_block(source: LazyModel, device: torch.device):
    """A model of one decoder block with random weights, or None for a family that cannot be cut to one."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(source.skeleton.config.get_text_config())
    count = config.num_hidden_layers
    for name, value in config.to_dict().items():  # what is said of every block: kinds of attention, windows
        if isinstance(value, list) and len(value) == count > 1:
            setattr(config, name, value[:1])
    config.num_hidden_layers, config.vocab_size = 1, VOCABULARY
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, source.ref.dtype),
                                                     trust_remote_code=False)
    # a family that checks its own fields against each other; its time is then estimated from the number of its weights
    except Exception:
        return None
    model = make_plain(model.eval().requires_grad_(False))
    return model if len(find_blocks(model)[1]) == 1 else None


def tokens(*lengths: int) -> list[np.ndarray]:
    """Rows of token ids that mean nothing."""
    return [np.arange(length, dtype=np.int64) % VOCABULARY for length in lengths]


class Probe:
    """Timings of one model on one device, each made once."""

    def __init__(self, source: LazyModel, device: torch.device):
        self.source, self.device, self.sizes, self.known = source, device, source.sizes, {}

    @cached_property
    def model(self):
        return one_block(self.source, self.device)

    def seconds(self, run, load: int = 1, least: int = 1) -> float:
        """Seconds of ``run(n)`` a unit of load, for the n up to ``load`` that fits the time."""
        self._clocked(run, least)  # the first time allocates and picks kernels
        first = self._clocked(run, least)
        n = max(least, min(load, int(least * SECONDS / max(first, 1e-9))))
        taken = [first / least] if n == least else []
        while len(taken) < 3 and sum(taken) * n < 3 * SECONDS:
            taken.append(self._clocked(run, n) / n)
        return min(taken)

    def _clocked(self, run, n: int) -> float:
        self._finish()
        start = time.perf_counter()
        run(n)
        self._finish()
        return time.perf_counter() - start

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, key, make) -> float:
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def token(self, rows: int, width: int) -> float:
        """Seconds a token and block of contexts in this shape."""
        def run(n):
            ids, mask = forward.pad(tokens(*[width] * n), self.device)
            with torch.inference_mode():
                call(self.model, ids, mask, None, last_only=True)
        return self.once(("token", rows, width), lambda: self._bare() if self.model is None
                         else self.seconds(run, rows) / width)

    def step(self, rows: int, width: int) -> float:
        """Seconds a block of one generated token for every row, on a cache of contexts."""
        if self.model is None:
            return rows * self._bare()

        @torch.inference_mode()
        def make():
            state = prefill(self.model, tokens(*[width] * rows))
            ids, mask = state.logprobs.argmax(-1)[:, None], torch.cat([state.mask, state.mask[:, :1]], 1)
            return self.seconds(lambda n: call(self.model, ids, mask, positions=state.lengths[:, None],
                                               cache=expand(state.cache, None), last_only=True))
        return self.once(("step", rows, width), make)

    def _bare(self) -> float:
        """Seconds a token and block, by the operations of its matrix products alone."""
        d = self.sizes
        return OVERHEAD * 2 * d.linears / d.blocks / self.flops(getattr(torch, self.source.ref.dtype))

    def flops(self, dtype: torch.dtype) -> float:
        """Operations a second of matrix products in a dtype."""
        def make():
            a, b = (torch.ones(size, 1024, device=self.device, dtype=dtype) for size in (512, 1024))
            return 2 * 512 * 1024 * 1024 / self.seconds(lambda n: [a @ b for _ in range(n)], 2**16)
        return self.once(("flops", dtype), make)

    def byte(self) -> float:
        """Seconds in which a byte of a block comes from the CPU's memory to the device; none where that is the CPU.
        Reading files is not in it.
        """
        def make():
            rest = torch.ones(MOVED, dtype=torch.uint8)

            def run(n):
                for _ in range(n):
                    rest.to(self.device)
            return self.seconds(run, 32) / MOVED
        return 0.0 if self.device.type == "cpu" else self.once("byte", make)

    def head(self) -> float:
        """Seconds of the logits of one token, and of their log-softmax."""
        d = self.sizes
        columns = min(d.vocabulary, HEAD)

        def make():
            weight = torch.ones(columns, d.hidden, device=self.device,
                                dtype=getattr(torch, self.source.ref.dtype))
            x = torch.ones(512, d.hidden, device=weight.device, dtype=weight.dtype)
            return self.seconds(lambda n: torch.log_softmax((x[:n] @ weight.t()).float(), -1), 512,
                                16) * d.vocabulary / columns
        return self.once("head", make)

    def backward(self, length: int, kinds: tuple[str, ...], grad_dtype: str) -> float:
        """Seconds a document of this length and block: forward, backward, and adding up; the head apart."""
        if self.model is None:
            return 3 * length * self._bare()
        linears, dtype = find_linears(self.model)[0], str(DTYPES[grad_dtype]).removeprefix("torch.")

        def run(n, width=length):
            rows = tokens(*[width] * n)
            masks = tuple(np.ones(len(r), dtype=bool) for r in rows)
            calib = CalibSet(task="probe", doc_ids=tuple(map(str, range(n))), tokens=tuple(rows), loss_mask=masks,
                             seed=0, template="")
            gradient_sums(self.model, linears, calib, kinds=kinds, grad_dtype=dtype)

        def make():
            for _ in range(2):  # the first time allocates
                few = self._clocked(lambda n: run(n, SHORT), 1)
            if few > SECONDS:  # slow: a line through two short documents
                return few + (self._clocked(lambda n: run(n, 4 * SHORT), 1) - few) / (3 * SHORT) * (length - SHORT)
            return max(self._clocked(run, 3) - self._clocked(run, 1), 0.0) / 2  # widening and zeros come once a pass
        return self.once(("backward", length, kinds, dtype), make)

    def solve(self, quantizer: str, layer: LayerPlan, options: dict) -> float:
        """Seconds a weight of a quantizer's own work on the commonest linear, factors of wide Hessians not counted."""
        shapes = list(self.source.shapes.values())
        rows, cols = max(dict.fromkeys(shapes), key=lambda shape: (shapes.count(shape), shape))
        piece = rows if self.device.type == "cuda" else min(rows, ROWS), min(cols, SOLVED)
        if options.get("target"):  # what the whole linear has room for; a codebook a row takes more of a piece
            room = max(0.0, options["target"] - layer_bits(layer, (rows, cols)) / (rows * cols))
            options = options | {"target": layer_bits(layer, piece) / math.prod(piece) + room}
        return self.once((quantizer, repr(layer), repr(options)),
                         lambda: self._solve(quantizer, layer, options, shape=piece))

    def _solve(self, quantizer: str, layer: LayerPlan, options: dict, *, shape: tuple[int, int]) -> float:
        spec, generator = QUANTIZERS.get(quantizer), torch.Generator().manual_seed(0)
        weight = (0.02 * torch.randn(shape, generator=generator)).to(self.device)
        x = torch.randn(2 * shape[1], shape[1], generator=generator).to(weight.device)
        aid = Aid("probe", hessian=x.t() @ x, replay=lambda: iter([x]), fisher=weight.square(), options=options)
        half = weight.to(getattr(torch, self.source.ref.dtype))

        def run(_n):
            if spec.needs:
                spec.fn(weight, layer, replace(aid, shared={}))
            else:
                spec.fn(half, layer)
        return self.seconds(run) / weight.numel()
