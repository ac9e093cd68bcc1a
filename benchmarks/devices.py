"""The same rows on the CPU and on a GPU: seconds of every stage beside each other, memory, and the metrics of both.

    python -m benchmarks.devices [--devices cpu cuda] [--model FOLDER | --shape 2048x5632x22]

Each device has a cache of its own, so every stage is made on it; --out keeps them, and a run that was stopped goes on
there.  --shape: random weights of a Llama of that width, MLP width and number of blocks with the demo model's
tokenizer, where weights of that size cannot be had: seconds and memory are then worth reading, metrics are not.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
ROWS = ("uniform", "TaCQ", "TAQoS", "W4A4-native[act_bits=4]")
GIB = 2**30


def main() -> int:
    """Run the grid once a device; print a table of stages and one of rows."""
    args = _parser().parse_args()
    from tabulate import tabulate

    from benchmarks.random_llama import random_llama
    from report.records import load_results

    with tempfile.TemporaryDirectory() as temp:
        out = args.out or Path(temp)
        model = args.model or (random_llama(args.shape, Path(temp) / "random") if args.shape else "smollm2-135m")
        runs = {}
        for device in args.devices:
            _run(device, model, args, out / device)
            runs[device] = {r.name: r for r in load_results(out / device / "results")}
    names = [name for name in ("fp16", *args.method) if all(name in run for run in runs.values())]
    print("machines:", "; ".join(f"{device}: {next(iter(run.values())).machine}" for device, run in runs.items()))
    print("versions:", next(iter(runs[args.devices[-1]].values())).versions)
    print(tabulate(_stages(names, runs), "keys", "github", floatfmt=".2f"), "\n")
    print(tabulate([_row(name, runs) for name in names], "keys", "github", floatfmt=".3f"))
    failed = [f"{device}: {r.name}: {r.error}" for device, run in runs.items() for r in run.values() if not r.ok]
    print(*failed, sep="\n")
    return bool(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--model", help="a local folder (default: the demo's model)")
    parser.add_argument("--shape", help="random weights instead, WIDTHxMLPxBLOCKS")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder that keeps caches and results (default: none)")
    parser.add_argument("--method", nargs="+", default=list(ROWS))
    parser.add_argument("--dataset", default="mmlu_pro", help="an embedded data set (default: mmlu_pro)")
    parser.add_argument("--calib_size", type=int, default=32)
    parser.add_argument("--eval_size", type=int, default=64)
    return parser


def _run(device: str, model: str, args, folder: Path) -> None:
    command = [sys.executable, "run_taq_icml.py", "--run_type", "demo", "--device", device, "--model", model,
               "--dataset", args.dataset, "--method", *args.method, "--avg_bits", "4.25", "--quantizer", "gptq",
               "--calib_size", str(args.calib_size), "--eval_size", str(args.eval_size), "--seeds", "42",
               "--cache_dir", str(folder.resolve() / "cache"), "--results_dir", str(folder.resolve() / "results")]
    subprocess.run(command, cwd=REPO, stdout=sys.stderr)  # cells that fail are named at the end


def _stages(names: list[str], runs: dict) -> list[dict]:
    """Seconds by row and stage; a stage that several rows share is counted in the first of them."""
    rows, seen = [], set()
    for name in names:
        for stage in next(iter(runs.values()))[name].seconds:
            took = [run[name].seconds.get(stage) for run in runs.values()]
            if (stage, *took) in seen or None in took:
                continue
            seen.add((stage, *took))
            rows.append({"row": name, "stage": stage, **{f"{d} s": t for d, t in zip(runs, took, strict=True)}})
            if len(took) > 1:
                rows[-1]["ratio"] = took[0] / took[-1] if took[-1] else None
    return rows


def _row(name: str, runs: dict) -> dict:
    row = {"row": name}
    for device, run in runs.items():
        result = run[name]
        if result.ok:
            row |= {f"{device} bits": result.bits.average, f"{device} loglik": result.metrics["gold_loglik"].value,
                    f"{device} process GiB": result.process_peak_bytes / GIB}
            if result.device_peak_bytes:
                row[f"{device} GiB"] = result.device_peak_bytes / GIB
    return row


if __name__ == "__main__":
    sys.exit(main())
