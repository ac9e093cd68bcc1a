"""The effect that TaCQ reports, by our own code: plain GPTQ ruins a model at 2 bits, 0.35 % of kept weights hold it.

Per bit width: plain GPTQ (one scale a row, 80 shrinks), gradients, the global top 0.35 % by |W|·Σ|g|·|W−Wq|, GPTQ again
around them; then the perplexity of held-out prompts, batch 1, in the model's dtype: exp of the mean over all tokens.
Each stage's processor seconds (``--threads`` 1 makes them comparable) and the process's peak memory are printed beside
the figures of ``--timings``, a JSON of the same stages from another implementation and, as a rule, another machine.

Run: python -m benchmarks.tacq_effect --calibration FILE --prompts FILE [--timings FILE] [--bits 2 3] [--threads 1]
FILE: JSON with token ids of the model's own tokenizer, {"sequences": [[...], ...]} and {"mmlu_prompts": [[...], ...]}.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import methods  # noqa: F401  (registers)
from core.architecture import find_blocks, find_linears
from core.demo_model import ensure_demo_model
from core.environment import peak_bytes
from core.forward import call
from core.model import load_model, model_ref, pick_device, pick_dtype
from core.types import Budget, CalibSet, LayerPlan, Scores
from methods.tacq import saliency
from quantization.allocators.common import AllocContext
from quantization.allocators.native import global_topk
from quantization.apply import Originals
from quantization.bits import make_plan
from streams.gradients import gradient_sums

STAGES = {"plain": "mss4-1corrupt-{bits}", "gradients": "mss4-2importance-{bits}", "top-k": "mss4-3mask-{bits}",
          "kept": "mss4-4gptq-{bits}"}


class Clock:
    """Processor and wall seconds and peak memory of each stage."""

    def __init__(self):
        self.rows: list[dict] = []

    def run(self, stage: str, bits: int | None, work):
        wall, cpu = time.perf_counter(), time.process_time()
        out = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.rows.append({"stage": stage, "bits": bits, "wall_s": wall, "cpu_s": cpu, "peak_MiB": peak_bytes() / 2**20})
        print(f"{stage} {'' if bits is None else f'{bits} bits '}{wall:.0f} s wall, {cpu:.0f} s processor",
              file=sys.stderr, flush=True)
        return out


@torch.inference_mode()
def perplexity(model, prompts) -> float:
    """exp(mean negative log-likelihood of every token after the first), batch 1."""
    total, count = 0.0, 0
    for row in prompts:
        ids = torch.tensor(row)[None].to(model.get_input_embeddings().weight.device)
        logits = call(model, ids, torch.ones_like(ids), last_only=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(row) - 1
    return math.exp(total / count)


def effect(args, clock: Clock) -> list[dict]:
    """One row a bit width and method: bits stored, perplexity."""
    where = str(ensure_demo_model(Path(args.cache_dir) / "base", lambda text: print(text, file=sys.stderr)))
    device = pick_device("auto")
    model = load_model(where, model_ref(where, pick_dtype("bf16", device), None, ()), device)
    linears, block_of = find_linears(model)
    sequences = tuple(np.asarray(s) for s in json.loads(Path(args.calibration).read_text())["sequences"])
    calib = CalibSet(task="calibration", doc_ids=tuple(map(str, range(len(sequences)))), tokens=sequences,
                     loss_mask=tuple(np.ones(len(s), bool) for s in sequences), seed=0, template="")
    prompts = json.loads(Path(args.prompts).read_text())["mmlu_prompts"]
    shapes, originals = {f: tuple(lin.weight.shape) for f, lin in linears.items()}, Originals(linears)

    def solve(layers):
        solved = originals.solve(layers, "gptq", model=model, blocks=find_blocks(model)[1], block_of=block_of,
                                calib=calib, options={"search": "published"})
        return make_plan({f: s.layer for f, s in solved.items()}, shapes, (0, 0), {}).avg_bits

    whole = clock.run("perplexity", None, lambda: perplexity(model, prompts))
    rows = [{"method": "as loaded", "bits": 16.0, "perplexity": whole}]
    gradient = clock.run("gradients", None, lambda: gradient_sums(model, linears, calib, ("abs",)).sums["abs"])
    for bits in args.bits:
        plain = {f: LayerPlan(bits, cols) for f, (_, cols) in shapes.items()}
        stored = clock.run("plain", bits, lambda plain=plain: solve(plain))
        rows.append({"method": f"GPTQ, {bits} bits", "bits": stored, "perplexity": perplexity(model, prompts)})
        corrupt = {f: lin.weight.detach().cpu().clone() for f, lin in linears.items()}

        def choose(bits=bits, corrupt=corrupt):
            scores = {f: saliency(originals.weights[f], gradient[f], corrupt[f]) for f in linears}
            ctx = AllocContext(shapes, block_of, Budget(0.0), Scores("element", scores, ""),
                               options={"bits": bits, "ratio": args.ratio})
            return global_topk(ctx)[0]

        kept = clock.run("top-k", bits, choose)
        stored = clock.run("kept", bits, lambda kept=kept: solve(kept))
        rows.append({"method": f"TaCQ, {bits} bits", "bits": stored, "perplexity": perplexity(model, prompts)})
    return rows


def beside(clock: Clock, timings: Path | None) -> pd.DataFrame:
    """The stages' seconds, and another implementation's where there is one."""
    theirs = json.loads(timings.read_text())["stages"] if timings else {}
    out = []
    for row in clock.rows:
        other = theirs.get(STAGES.get(row["stage"], "").format(bits=row["bits"] or 3), {})
        seconds = other.get("cpu_user_s")
        out.append({k: (f"{v:.0f}" if isinstance(v, float) else "-" if v is None else v) for k, v in row.items()}
                   | {"their cpu_s": "-" if seconds is None else f"{seconds:.0f}",
                      "ratio": "-" if seconds is None else f"{row['cpu_s'] / seconds:.2f}",
                      "their peak_MiB": other.get("peak_rss_MiB", "-")})
    return pd.DataFrame(out)


def main(argv: list[str] | None = None) -> int:
    """Run it and print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--timings", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--ratio", type=float, default=0.0035)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache_dir", default="saved_models")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    clock = Clock()
    rows = effect(args, clock)
    print(pd.DataFrame([{**r, "bits": f"{r['bits']:.3f}", "perplexity": f"{r['perplexity']:.1f}"}
                        for r in rows]).to_markdown(
        index=False, disable_numparse=True))
    print()
    print(beside(clock, args.timings).to_markdown(index=False, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
