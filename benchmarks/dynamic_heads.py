"""What choosing heads at run time gains over always the same ones, and what it costs.

For each number K of heads of a block at 16 bits, all else in the common grid (round-to-nearest): heads-static-native
keeps the K with the largest mean output, heads-dynamic-native those K of each token with the largest output.  Prints
stored bits, the gold log-likelihood of both, the paired difference with its 95 % interval and p, and the time of a
pass over a prompt and of a token written, as ratios of the same model without a choice, all in one process.
A static head brings its key/value head at 16 bits, which the other query heads of the group read too; in heads-dynamic
these read quantized ones.
Run: python -m benchmarks.dynamic_heads [--heads 1 2 4] [--bits 3] [--dataset mmlu_pro] [--data_dir DIR] [--threads 2]
"""

import argparse
import statistics
import sys
import time

import pandas as pd

PROMPT, WRITTEN, REPEATS = 256, 32, 5


def main(argv: list[str] | None = None) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--bits", type=int, default=3, help="of what is quantized")
    parser.add_argument("--dataset", default="mmlu_pro")
    parser.add_argument("--data_dir", help="folder with data sets in the hub's layout (default: the embedded rows)")
    parser.add_argument("--eval_size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache_dir", default="saved_models")
    args = parser.parse_args(argv)
    given = {"eval_size": args.eval_size, "threads": args.threads, "device": "cpu", "cache_dir": args.cache_dir,
             "seeds": (0,), **({"data_dir": args.data_dir} if args.data_dir else {})}
    print(pd.DataFrame([compared(count, args, given) for count in args.heads]).to_markdown(index=False,
                                                                                          disable_numparse=True))
    return 0


def compared(count: int, args, given: dict) -> dict:
    """One row: K heads, static against dynamic."""
    from evaluation.statistics.paired import Panel
    from harness.api import answers_of, one_case
    from report.text.numbers import p_value, signed, span

    told = f"[bits={args.bits},heads={count}]"
    cases = [one_case("smollm2-135m", name + told, args.dataset, dict(given))
             for name in ("heads-static-native", "heads-dynamic-native")]
    answers = [answers_of(case) for case in cases]
    panel = Panel([one.samples for one in answers])
    bits = [one.result.bits.average for one in answers]
    loglik = [one.metrics["gold_loglik"].value for one in answers]
    prompt, token = slower(cases[1])
    return {"heads K": count, "static: bits": f"{bits[0]:.3f}", "dynamic: bits": f"{bits[1]:.3f}",
            "static: LL": f"{loglik[0]:.3f}", "dynamic: LL": f"{loglik[1]:.3f}",
            "dynamic - static": span(panel.difference("gold_loglik", 0, 1), signed),
            "p": p_value(panel.permutation_p("gold_loglik", 0, 1)), "n": panel.n,
            "prompt, times": f"{prompt:.2f}", "token, times": f"{token:.2f}"}


def slower(case) -> tuple[float, float]:
    """How many times as long a prompt and a written token take with the choice as without."""
    from harness.stages.options import published_quantizer
    from harness.stages.plan import plan
    from quantization.dynamic import choosing_heads

    model, planned = case.model, plan(case).plan
    model.originals.apply(planned, published_quantizer(case))
    plain = seconds(model.module)
    with choosing_heads(model.module, planned.layers, model.originals.weights):
        chosen = seconds(model.module)
    return chosen[0] / plain[0], chosen[1] / plain[1]


def seconds(module) -> tuple[float, float]:
    """Median seconds of a pass over PROMPT tokens, and of each of WRITTEN tokens after it."""
    import torch

    from core.forward import call

    ids = torch.arange(100, 100 + PROMPT)[None]
    prompts, tokens = [], []
    with torch.inference_mode():
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            out = call(module, ids, torch.ones_like(ids), use_cache=True)
            prompts.append(time.perf_counter() - start)
            cache, mask = out.past_key_values, torch.ones_like(ids)
            start = time.perf_counter()
            for step in range(WRITTEN):
                mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
                cache = call(module, ids[:, step:step + 1], mask, use_cache=True, past_key_values=cache).past_key_values
            tokens.append((time.perf_counter() - start) / WRITTEN)
    return statistics.median(prompts[1:]), statistics.median(tokens[1:])  # the first warms up


if __name__ == "__main__":
    sys.exit(main())
