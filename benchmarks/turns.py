"""Timing in turns on the demo's real model, with a floor and a count of padding; for ``benchmarks.stages``."""

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate

from core import forward
from core.architecture import find_blocks, find_linears
from core.demo_model import ensure_demo_model
from core.model import load_model, load_tokenizer
from core.registry import SCORERS
from core.types import CalibSet, ModelRef, ScoreContext
from streams import outputs

REF = ModelRef("demo", "-", "float32")


class Bench:
    """The model, what counts its tokens, and the rows of the table."""

    def __init__(self, args):
        self.args, folder = args, str(ensure_demo_model(Path("saved_models/base")))
        self.model = load_model(folder, REF, torch.device("cpu"))
        self.model.rows_alone = False
        self.tokenizer = load_tokenizer(folder, REF)
        self.linears, self.block_of = find_linears(self.model)
        self.blocks = find_blocks(self.model)[1]
        self.seen = [0, 0]  # tokens run, and real ones among them
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.rate = self._rate()
        self.rows: list[list] = []

    def _count(self, _module, args, kwargs) -> None:
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        self.seen[0] += ids.numel()
        self.seen[1] += ids.numel() if mask is None else int(mask[:, -ids.shape[1]:].sum())

    @torch.no_grad()
    def _rate(self) -> float:
        """CPU seconds a token, the head at the last position alone."""
        ids = torch.randint(5, 40_000, (4, 256), generator=torch.Generator().manual_seed(0))
        return seconds(lambda: forward.call(self.model, ids, torch.ones_like(ids)), 3)[0] / ids.numel()

    def compare(self, stage: str, ours: Callable, *others: tuple[str, Callable], tokens: float | None = None) -> None:
        """Time ours and others in turns; tokens: what the floor counts, None = the real tokens that ours runs."""
        self.seen[:] = [0, 0]
        ours()  # the first run of each shape is slower
        run, real = self.seen
        times = seconds_in_turns([ours, *(other for _, other in others)], self.args.repeat)
        floor = self.rate * (real if tokens is None else tokens)
        padded = run / real if tokens is None else None
        for (label, _), taken in zip((("ours", None), *others), times, strict=True):
            own = label == "ours"
            self.rows.append([stage if own else "", label, taken, taken / times[0], taken / floor if floor else None,
                              padded if own else None])
        print(self.table(), flush=True)

    def table(self) -> str:
        return tabulate(self.rows, ["stage", "run by", "CPU s", "of ours", "of the floor", "padded / real"], "github",
                        floatfmt=(None, None, ".2f", ".2f", ".2f", ".3f"), missingval="-")

    def context(self, name: str, calib: CalibSet, **params) -> ScoreContext:
        spec = SCORERS.get(name)
        ctx = ScoreContext(
            model=self.model, tokenizer=self.tokenizer, linears=self.linears, blocks=self.blocks,
            block_of=self.block_of, calib=calib, allowed=(*spec.params, *outputs.PARAMS), params={
                "seed": 0, "batch_tokens": 4096, "published": False, "score_docs": 256, "kl_docs": 64} | params)
        ctx.outputs = lambda chosen: outputs.block_outputs(ctx, chosen)
        return ctx


def seconds(run: Callable, repeat: int) -> list[float]:
    return seconds_in_turns([run], repeat)


def seconds_in_turns(runs: list[Callable], repeat: int) -> list[float]:
    """Median CPU seconds of each, A B A B ..."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeat):
        for run, own in zip(runs, times, strict=True):
            gc.collect()
            begun = time.process_time()
            run()
            own.append(time.process_time() - begun)
    return [statistics.median(own) for own in times]
