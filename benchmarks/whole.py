"""A whole model of random weights in Llama-3.1-8B's shape through scores, solver and questions, as the harness runs it.

    python -m benchmarks.whole [--shape 4096x14336x32] [--method TAQ] [--offload cpu] [--root DIR]

Prints seconds of every stage and its peak memory, as ``--dry_run`` predicts it and as measured: on a GPU what torch
held, on the CPU what no file stands behind (as benchmarks/peaks.py).  --root keeps the model for the next run; caches
and results are made anew.  Metrics of random weights mean nothing.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.peaks import Sampler, give_back_at_once
from benchmarks.random_llama import SHAPE, random_llama
from harness.forecast.dry_run import highest
from harness.grid import with_methods
from harness.jobs.launch import run_local
from harness.presets import build_grid
from harness.progress import Progress
from harness.stages.case import open_cases
from tests.harness.bench import silent

ENDS = ((": gptq", "linears are solved"), (": quantizing", "questions are asked"))  # of what Progress is told
SMALL = dict(datasets=("mmlu_pro",), avg_bits=(4.25,), quantizer="gptq", eval_size=16, calib_size=32,
             calib_tokens=4096, kl_docs=4, score_docs=16, dtype="bf16", grad_dtype="bf16")


class StageSampler(Sampler):
    """Beside memory of the process: seconds of each stage, and the most that torch held on the GPU."""

    def __init__(self):
        super().__init__()
        self.gpu: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.since = time.monotonic()

    def see(self, what: str, done: int, total: int) -> None:
        before = self.stage
        super().see(what, done, total)
        self.stage = next((stage for end, stage in ENDS if what.endswith(end)), self.stage)
        if self.stage != before:
            self.close(before)

    def close(self, stage: str) -> None:
        """Write down what a stage took that has just ended."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.since
        self.since = now
        if torch.cuda.is_available():
            self.gpu[stage] = max(self.gpu.get(stage, 0), torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()


def main() -> int:
    args = _parser().parse_args()
    give_back_at_once()
    with tempfile.TemporaryDirectory(dir=args.root) as temp:
        start = time.monotonic()
        folder = random_llama(args.shape, (args.root or Path(temp)) / f"llama-{args.shape}")
        print(f"weights written in {time.monotonic() - start:.0f} s", flush=True)
        grid = build_grid("demo", models=(folder,), **SMALL, methods=tuple(args.method), offload=args.offload,
                          device=args.device, cache_dir=f"{temp}/cache", results_dir=f"{temp}/results")
        grid = with_methods(grid, ("fp16", *args.method))
        cases = list(open_cases(grid, None, silent()))
        told = highest(cases)
        print(f"opened and hashed in {time.monotonic() - start:.0f} s", flush=True)
        sampler = StageSampler()
        with Progress(len(cases)) as progress:
            progress.watchers.append(sampler.see)
            sampler.since = time.monotonic()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            sampler.start()
            results = run_local(grid, None, progress, [])
        sampler.close(sampler.stage)
        written = sum(file.stat().st_size for file in Path(temp, "cache").rglob("*") if file.is_file())
        shutil.rmtree(Path(temp, "cache"))
    print(f"\n{results[-1].machine}; torch {torch.__version__}; {args.shape}, {grid.eval_size} documents asked, "
          f"{sum(map(len, cases[-1].solver_calib.tokens))} tokens to solvers; --offload {args.offload}; "
          f"{written / 1e9:.1f} GB left in the cache\n")
    print(tabulate([row(stage, told, sampler) for stage in sampler.seconds],
                   ["stage", "s", "GPU, GB: predicted", "measured", "CPU, GB: predicted", "measured"], "github",
                   floatfmt=".1f", missingval="-"))
    print()
    for result in results:
        took = ", ".join(f"{stage} {s:.1f}" for stage, s in result.seconds.items()) if result.ok else result.error
        print(f"{result.name}: {took}")
    return not all(result.ok for result in results)


def row(stage: str, told: dict, sampler: StageSampler) -> list:
    (gpu, _), (cpu, _) = told.get(stage, ((0, ""), (0, "")))
    sizes = (gpu, sampler.gpu.get(stage, 0), cpu, sampler.most.get(stage, 0))
    return [stage, sampler.seconds[stage], *(size / 1e9 or None for size in sizes)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=SHAPE, help=f"WIDTHxMLPxBLOCKS (default: {SHAPE})")
    parser.add_argument("--method", nargs="+", default=["TAQ"], help="rows beside full precision (default: TAQ)")
    parser.add_argument("--offload", choices=("off", "cpu", "disk"), default="off", help="as the grid's flag")
    parser.add_argument("--device", default="auto", help="as the grid's flag")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder that keeps the model (default: none)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
