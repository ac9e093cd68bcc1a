"""Peak memory of every stage: predicted and measured on the demo's model, predicted for Llama-3.1-8B's shape on a GPU.

    python -m benchmarks.peaks [--only predicted] [--offload cpu|disk]

Predicted is what ``--dry_run`` says (harness/forecast/memory.py).  Measured is the most memory of the process that no
file stands behind while the stage ran (RssAnon, looked at every 20 ms), with an allocator that gives back what is freed
at once; the libraries' own files, which predictions count, take 0.2 GB more.  The 8B model is a configuration without
weights; its rows are those of a grid with one GPU.  With --offload blocks rest on the CPU or in files: of the demo's
model, which runs on the CPU, in files whichever is asked for.
"""

import argparse
import ctypes
import tempfile
import threading
import time
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.random_llama import SHAPE, llama_config, save_tokenizer
from core.demo_model import ensure_demo_model
from harness.forecast.dry_run import highest
from harness.forecast.memory import GRADIENTS
from harness.jobs.launch import run_local
from harness.presets import build_grid
from harness.progress import Progress
from harness.stages.case import open_cases
from tests.harness.bench import silent

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt
ROWS = ("TaCQ", "TAQoS")
SMALL = dict(datasets=("mmlu_pro",), methods=ROWS, avg_bits=(4.25,), quantizer="rtn", eval_size=8, calib_size=16,
             calib_tokens=2048, kl_docs=4, score_docs=16, dtype="fp32", threads=1, device="cpu")
LARGE = dict(datasets=("mmlu_pro",), methods=("TaCQ", "TAQoS", "SPQR"), avg_bits=(4.25,), quantizer="gptq",
             eval_size=256, calib_size=128, calib_tokens=128 * 512, dtype="bf16", grad_dtype="bf16", device="cpu")
SEEN = (("block outputs", "prompts are scored"), ("KL under noise", "prompts are scored"), ("gradients", GRADIENTS),
        ("Hessians", "linears are solved"), ("the quantized model", "linears are solved"),
        ("kept weights are chosen", "kept weights are chosen"), ("TaCQ: ", "questions are asked"),
        ("TAQoS: ", "questions are asked"))


class Sampler(threading.Thread):
    """The most anonymous memory while each stage ran."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stage, self.most = "weights are loaded", {}

    def see(self, what: str, _done: int, _total: int) -> None:
        self.stage = next((stage for begin, stage in SEEN if what.startswith(begin)),
                          "questions are asked" if " on " in what else self.stage)

    def run(self) -> None:
        while True:
            size = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines()
                        if line.startswith("RssAnon"))
            self.most[self.stage] = max(self.most.get(self.stage, 0), size)
            time.sleep(0.02)


def small(root: Path, measured: bool, offload: str) -> None:
    grid = build_grid("demo", models=(str(ensure_demo_model(Path("saved_models/base"))),), **SMALL,
                      cache_dir=str(root / "cache"), results_dir=str(root / "results"),
                      offload=offload if offload == "off" else "disk")
    told = highest(list(open_cases(grid, None, silent())))
    sampler = Sampler()
    if measured:
        give_back_at_once()
        sampler.start()
        with Progress(len(told)) as progress:
            progress.watchers.append(sampler.see)
            assert all(result.ok for result in run_local(grid, None, progress, []))
    print(tabulate([[name, row, size / 1e9, sampler.most.get(name, 0) / 1e9 or None]
                    for name, (_, (size, row)) in told.items()],
                   [f"stage, SmolLM2-135M-Instruct in float32{shown(offload)}", "most in", "predicted, GB",
                    "measured, GB"], "github", floatfmt=".2f", missingval="-"), flush=True)


def large(root: Path, offload: str) -> None:
    """The same of a model that is only described."""
    folder = root / "Llama-3.1-8B-shape"
    save_tokenizer(folder)
    llama_config(SHAPE).save_pretrained(folder)
    from safetensors.torch import save_file

    save_file({"nothing": torch.zeros(1, dtype=torch.bfloat16)}, folder / "model.safetensors")
    grid = build_grid("demo", models=(str(folder),), **LARGE, cache_dir=str(root / "c8"), results_dir=str(root / "r8"),
                      offload=offload)
    cases = open_cases(grid, None, silent())
    gpu, model = torch.device("cuda:0"), cases[0].model
    model.device, model.eval_device, model.grad_devices = gpu, gpu, (gpu,)
    gptq = [case for case in cases if case.method.name == "uniform"]
    rows = [[stage, gpu / 1e9, there, cpu / 1e9, here]
            for some in (list(cases), gptq) for stage, ((gpu, there), (cpu, here)) in highest(some).items()
            if some is not gptq or stage == "linears are solved"]
    print(tabulate(rows, [f"stage, 8B in bf16{shown(offload)}, predicted", "GPU, GB", "in", "CPU, GB", "in"], "github",
                   floatfmt=".1f"))


def shown(offload: str) -> str:
    return "" if offload == "off" else f", --offload {offload}"


def give_back_at_once() -> None:
    """Tell the C library to hold no freed memory of 64 KiB or more; it would be measured in later stages."""
    mallopt = ctypes.CDLL(None).mallopt
    for what, size in ((M_MMAP_THRESHOLD, 2**16), (M_TRIM_THRESHOLD, 2**16)):
        assert mallopt(what, size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("predicted",), help="measure nothing")
    parser.add_argument("--offload", choices=("cpu", "disk"), default="off", help="as the grid's flag")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large(Path(folder), args.offload)
        print()
        small(Path(folder), measured=args.only is None, offload=args.offload)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
