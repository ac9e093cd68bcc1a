"""What circuit scores cost: seconds, peak memory, and exact head ablation against a pass of the whole model a head.

Each method runs in a process of its own on the same worked documents of MMLU-Pro's embedded rows, with the demo's
model.  Prints, per method, documents, their tokens, seconds of the scorer alone, the process's peak memory, and how
many times faster it is than ablating head by head from the input on (timed on the document of median length, times
their number).
Run: python -m benchmarks.circuit_cost [--docs 32] [--threads 2] [--method heads-ablation LIG ...]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

METHODS = ("heads-ablation", "heads-attribution", "heads-EAP-IG", "circuit", "LIG")
BASELINE = "head by head"


def one(method: str, docs: int, threads: int, grad_dtype: str) -> dict:
    """Time one method here: seconds, peak bytes, documents, tokens."""
    from core.environment import peak_bytes
    from core.registry import SCORERS
    from harness.grid import with_methods
    from harness.presets import row_grid
    from harness.progress import Progress
    from harness.stages.case import open_cases
    from harness.stages.scores import run_scorer
    from harness.store.partial import Partial

    name = "heads-ablation" if method == BASELINE else method
    grid = row_grid(methods=(name,), datasets=("mmlu_pro",), threads=threads, device="cpu",
                    circuit_docs=docs, lig_docs=docs, grad_dtype=grad_dtype, seeds=(0,))
    case = open_cases(with_methods(grid, (name,)), None, Progress(1))[0]
    marked = [i for i, mask in enumerate(case.answers.loss_mask) if mask[1:].any()][:docs]
    tokens = [len(case.answers.tokens[i]) for i in marked]
    assert case.model.module is not None  # loaded before the clock runs
    start = time.perf_counter()
    if method == BASELINE:
        seconds = head_by_head(case, marked) * len(marked)
    else:
        with TemporaryDirectory() as folder:
            run_scorer(case, SCORERS.get(name), Partial(Path(folder)))
        seconds = time.perf_counter() - start
    return {"method": method, "documents": len(marked), "tokens": sum(tokens), "seconds": seconds,
            "peak": peak_bytes()}


def head_by_head(case, docs: list[int]) -> float:
    """Seconds of ablating every head of one document of median length by a pass of the whole model each."""
    import torch

    from core.architecture import find_heads
    from core.forward import inputs_of
    from streams.answers import batch, log_probability

    model = case.model
    doc = sorted(docs, key=lambda i: len(case.answers.tokens[i]))[len(docs) // 2]
    asked = batch(case.answers, [doc], model.device)
    start = time.perf_counter()
    with torch.inference_mode():
        for one_block in find_heads(model.module):
            for head in range(one_block.heads):
                part = slice(head * one_block.width, (head + 1) * one_block.width)

                def change(_at, x, part=part):
                    x = x.clone()
                    x[..., part] = 0
                    return x

                with inputs_of([model.linears[one_block.o]], change):
                    log_probability(model.module, asked)
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--grad_dtype", default="bf16", help="arithmetic of gradients")
    parser.add_argument("--method", nargs="+", default=list(METHODS))
    parser.add_argument("--one", help="time this one here and print it as JSON; used by the benchmark itself")
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(one(args.one, args.docs, args.threads, args.grad_dtype)))
        return 0
    rows = []
    for method in (BASELINE, *args.method):
        shown = subprocess.run(
            [sys.executable, "-m", "benchmarks.circuit_cost", "--one", method, "--docs", str(args.docs), "--threads",
             str(args.threads), "--grad_dtype", args.grad_dtype], capture_output=True, text=True, check=True)
        rows.append(json.loads(shown.stdout.splitlines()[-1]))
    print(pd.DataFrame([{
        "method": row["method"], "documents": row["documents"], "tokens": row["tokens"],
        "seconds": f"{row['seconds']:.1f}", "peak MiB": f"{row['peak'] / 2**20:.0f}",
        "times faster than head by head": f"{rows[0]['seconds'] / row['seconds']:.1f}"} for row in rows]
        ).to_markdown(index=False, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
