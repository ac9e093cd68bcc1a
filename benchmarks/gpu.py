"""What a GPU does with the harness, in one call of a few minutes.

    python -m benchmarks.gpu [--blocks 2] [--skip tests stages devices whole]

tests    those marked gpu
stages   a few blocks in Llama-3.1-8B's shape: forward, gradients, and the solver with the kernel and with PyTorch's
         loop in turn (A B A B), on the same block from the same inputs
devices  the demo's model on the CPU and on the GPU, bitsandbytes' rows among them: benchmarks/devices.py
whole    all 32 blocks through scores, solver and questions: benchmarks/whole.py

Random weights, but for the demo's model: seconds, tokens a second and peak memory are worth reading, metrics are not.
Blocks are all alike, so the solver's numbers are a block's; with fewer blocks than the 32 of the shape the embeddings
weigh more than they do.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from tabulate import tabulate
from transformers import LlamaForCausalLM

from benchmarks.random_llama import SHAPE, VOCABULARY, llama_config
from core.architecture import find_blocks, find_linears
from core.types import Aid, CalibSet, LayerPlan
from quantization.kernels.columns import SWITCH
from quantization.solvers.gptq import solve
from streams.blocks import BlockStream, walk
from streams.gradients import gradient_sums

REPO = Path(__file__).resolve().parents[1]
GIB = 2**30
STEPS = ("tests", "stages", "devices", "whole")
ROWS = ("uniform", "TaCQ", "bnb-nf4", "bnb-int8")
DOCUMENTS, LENGTH = 8, 512


def main() -> int:
    """Run every step that is not skipped; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2, help="of the 32 of the shape, for the stages (default: 2)")
    parser.add_argument("--skip", nargs="+", choices=STEPS, default=[], help="steps to leave out")
    parser.add_argument("--root", type=Path, help="folder with 32 GB of room for the whole model (default: temporary)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU is there: torch.cuda.is_available() says no")
    # a lent machine may lack a package that other tests import: they are named, and those marked gpu run all the same
    other = {"tests": ["pytest", "-q", "-m", "gpu", "--continue-on-collection-errors"],
             "devices": ["benchmarks.devices", "--method", *ROWS],
             "whole": ["benchmarks.whole", *(["--root", str(args.root)] if args.root else [])]}
    failed = 0
    for step in STEPS:
        if step in args.skip:
            continue
        start = time.perf_counter()
        if step == "stages":
            _print_stages(args.blocks)
        else:  # in a process of its own
            failed += subprocess.run([sys.executable, "-m", *other[step]], cwd=REPO).returncode != 0
        print(f"== {step}: {time.perf_counter() - start:.0f} s\n", flush=True)
    return failed


def _print_stages(blocks: int) -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {blocks} blocks of 32, {DOCUMENTS} "
          f"documents of {LENGTH} tokens, weights in bf16", flush=True)
    with patch.dict(os.environ):  # the kernel is switched off and on
        print(tabulate(_stages(_model(blocks)), "keys", "github", floatfmt=".2f"))
    torch.cuda.empty_cache()


def _model(blocks: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    with torch.device("cuda"):
        return LlamaForCausalLM(llama_config(SHAPE.rpartition("x")[0] + f"x{blocks}")).to(torch.bfloat16).eval()


def _stages(model: LlamaForCausalLM) -> list[dict]:
    rng = np.random.default_rng(0)
    tokens = tuple(rng.integers(0, VOCABULARY, LENGTH) for _ in range(DOCUMENTS))
    ids = torch.from_numpy(np.stack(tokens)).cuda()
    calib = CalibSet("random", tuple(map(str, range(DOCUMENTS))), tokens,
                     tuple(np.ones(LENGTH, dtype=bool) for _ in tokens), seed=0, template="")
    blocks, linears = find_blocks(model)[1], find_linears(model)[0]
    count = DOCUMENTS * LENGTH

    @torch.no_grad()
    def forward() -> None:
        model(ids, logits_to_keep=1)

    def gradients() -> None:
        gradient_sums(model, linears, calib, ("sum",), grad_dtype="bfloat16")

    forward()  # the first call loads kernels
    rows = [_row("questions: forward", forward, tokens=count), _row("TaCQ: gradients", gradients, tokens=count)]
    first = {name: lin for name, lin in linears.items() if lin in set(blocks[0].modules())}
    weights = {name: lin.weight.detach().clone() for name, lin in first.items()}

    def one(name: str, aid: Aid) -> torch.Tensor:
        return solve(first[name].weight.float(), aid.hessian, LayerPlan(4, 128), shared=aid.shared).values

    def solver() -> None:
        for name, weight in weights.items():
            first[name].weight.data.copy_(weight)
        walk(BlockStream(model, blocks[:1], tokens), first, dict.fromkeys(first, 0), one)

    for turn in range(2):
        for switch, words in (("1", "kernel"), ("0", "PyTorch's loop")):
            os.environ[SWITCH] = switch
            if turn == 0 and switch == "1":
                solver()  # compiles the kernel
            rows.append(_row(f"GPTQ of one block, {words}", solver))
    return rows


def _row(name: str, run: Callable[[], None], tokens: int | None = None) -> dict:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {"stage": name, "s": seconds, "tokens a second": None if tokens is None else round(tokens / seconds),
            "peak GPU memory, GiB": torch.cuda.max_memory_allocated() / GIB}


if __name__ == "__main__":
    sys.exit(main())
