"""The source's table, measured: memory, task, speed and critical head retention of what the brief's project compares.

Rows: the model as loaded; NF4 everywhere; circuit-aware (0.2 of the heads and neurons at 16 bits, the rest NF4); random
heads and neurons of the same form at the same stored bits, one a seed; uniform bits of the common grid at the same
stored bits.  Task: gold log-likelihood and accuracy of the data set's evaluation documents, and their paired difference
from circuit-aware.  Retention: the share of the best tenth of the heads, by exact ablation on the documents that
calibrate, that a row keeps at 16 bits.  Each row with a run-time form runs in a process of its own, which loads the
checkpoint in two branches and writes 64 tokens, greedily, one prompt at a time; uniform bits have no kernel here, so
they have no speed and no process.
Run: python -m benchmarks.circuit_table [--dataset mmlu_pro] [--data_dir DIR] [--eval_size 256] [--threads 2]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

NEW_TOKENS, REPEATS = 64, 3
WHOLE = "16-bit"


def quantized(method: str, given: dict, dataset: str, folder: Path | None, **more) -> dict:
    """One row by the grid's own stages: bits, answers, kept heads; the checkpoint is left in ``folder``."""
    from harness.api import evaluate, quantize
    from quantization.packing.split import save_split

    small = quantize("smollm2-135m", method, dataset, **given | more)
    answers, case = evaluate(small), small.case
    weights, other = case.model.weights, case.model.other[0]
    row = {"bits": small.bits.average, "linears": small.bits.stored / 8, "whole": (small.bits.stored + other) / 8,
           "samples": answers.samples, "metrics": answers.metrics, "kept": kept_heads(case, small.plan.layers)}
    assert abs(small.bits.stored / weights - small.bits.average) < 1e-9
    if folder is not None:
        case.model.originals.restore()
        layers = small.plan.layers
        if layers:
            save_split(folder, case.model.module, layers, {"model": case.model.ref.name, "dataset": dataset,
                                                           "eval_size": 0, "calibrated": []})
        else:
            case.model.module.save_pretrained(folder)
        case.model.module.config.save_pretrained(folder)
        case.model.tokenizer.save_pretrained(folder)
        (folder / "prompt.json").write_text(json.dumps(list(case.data.requests[0].context)))
    return row


def kept_heads(case, layers: dict) -> set:
    """(block, head) of the heads that are at 16 bits by their columns of the output projection; all, without a plan."""
    from core.architecture import find_heads

    kept = set()
    for block, one in enumerate(find_heads(case.model.skeleton)):
        keep = layers[one.o].keep if layers else None
        for head in range(one.heads):
            part = slice(head * one.width, (head + 1) * one.width)
            if not layers or (keep is not None and keep[:, part].all()):
                kept.add((block, head))
    return kept


def critical(given: dict, dataset: str) -> frozenset:
    """(block, head) of the best tenth of the heads by exact ablation."""
    from harness.api import score
    from report.tables.heads import best_heads

    return best_heads(score("smollm2-135m", "heads-ablation", dataset, **given).notes["heads"])


def at_run_time(folder: Path, threads: int) -> dict:
    """Load a checkpoint, write tokens: tokens a second (median of REPEATS) and bytes of the process afterwards."""
    import gc

    import torch
    from transformers import AutoModelForCausalLM

    from quantization.packing.split import is_split, load_split

    torch.set_num_threads(threads)
    whole = AutoModelForCausalLM.from_pretrained
    model = load_split(folder) if is_split(folder) else whole(folder, dtype="auto").eval()
    ids, speeds = torch.tensor([json.loads((folder / "prompt.json").read_text())]), []
    for _ in range(REPEATS + 1):  # the first warms up
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS,
                           min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        speeds.append(NEW_TOKENS / (time.perf_counter() - start))
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"speed": statistics.median(speeds[1:]), "resident": pages * 4096}


def main(argv: list[str] | None = None) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="mmlu_pro")
    parser.add_argument("--data_dir", help="folder with data sets in the hub's layout (default: the embedded rows)")
    parser.add_argument("--eval_size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the random rows")
    parser.add_argument("--grad_dtype", default="bf16", help="arithmetic of gradients")
    parser.add_argument("--cache_dir", default="saved_models")
    parser.add_argument("--run", type=Path, help="measure this checkpoint here and print it; used by the benchmark")
    args = parser.parse_args(argv)
    if args.run:
        print(json.dumps(at_run_time(args.run, args.threads)))
        return 0
    given = {"eval_size": args.eval_size, "threads": args.threads, "device": "cpu", "cache_dir": args.cache_dir,
             "grad_dtype": args.grad_dtype, **({"data_dir": args.data_dir} if args.data_dir else {})}
    with TemporaryDirectory() as root:
        rows = measured(args, given, Path(root))
    print(table(rows, critical({**given, "seeds": (args.seeds[0],)}, args.dataset)))
    return 0


def measured(args, given: dict, root: Path) -> dict[str, dict]:
    """Every row by name."""
    rows, first = {}, {"seeds": (args.seeds[0],)}
    for name, method in ((WHOLE, "fp16"), ("uniform NF4", "circuit-native[fp16_ratio=0]"),
                         ("circuit-aware", "circuit-native")):
        (root / name).mkdir()
        rows[name] = quantized(method, given, args.dataset, root / name, **first)
    bits = rows["circuit-aware"]["bits"]
    for seed in args.seeds:
        name = f"random heads and neurons, seed {seed}"
        method = f"circuit-random+circuit_fraction+bnb-nf4-split[stored_bits={bits!r}]"
        folder = root / name if seed == args.seeds[0] else None
        if folder:
            folder.mkdir()
        rows[name] = quantized(method, given, args.dataset, folder, seeds=(seed,))
    rows["uniform bits"] = quantized("uniform", given, args.dataset, None, avg_bits=bits, **first)
    for name, row in rows.items():
        if (root / name).is_dir():
            shown = subprocess.run([sys.executable, "-m", "benchmarks.circuit_table", "--run", str(root / name),
                                    "--threads", str(args.threads)], capture_output=True, text=True, check=True)
            row |= json.loads(shown.stdout.splitlines()[-1])
    return rows


def table(rows: dict[str, dict], best: frozenset) -> str:
    """The rows as Markdown."""
    from evaluation.statistics.paired import Panel
    from report.text.numbers import p_value, signed, span

    panel = Panel([row["samples"] for row in rows.values()])
    circuit = list(rows).index("circuit-aware")

    lines = []
    for at, (name, row) in enumerate(rows.items()):
        accuracy, loglik = row["metrics"]["accuracy"], row["metrics"]["gold_loglik"]
        lines.append({
            "row": name, "bits": f"{row['bits']:.3f}", "linears MB": f"{row['linears'] / 1e6:.1f}",
            "model MB": f"{row['whole'] / 1e6:.1f}",
            "process MB": f"{row['resident'] / 1e6:.0f}" if "resident" in row else "-",
            "tokens/s": f"{row['speed']:.1f}" if "speed" in row else "-",
            "accuracy %": f"{100 * accuracy.value:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]",
            "gold LL": f"{loglik.value:.3f}",
            "LL against circuit-aware": "-" if at == circuit else span(
                panel.difference("gold_loglik", circuit, at), signed),
            "p": "-" if at == circuit else p_value(panel.permutation_p("gold_loglik", circuit, at)),
            "critical heads kept %": f"{100 * len(row['kept'] & best) / len(best):.0f}"})
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True) + f"\n\nn = {panel.n} documents"


if __name__ == "__main__":
    sys.exit(main())
