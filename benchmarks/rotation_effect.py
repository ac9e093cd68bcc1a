"""Where rotation gains and loses at 4-bit weights: each kind of linear rounded alone, as loaded, folded, rotated.

    python -m benchmarks.rotation_effect --data_dir DATA

"folded": the gains of norms are in the linears that read them, nothing is turned; a rotation needs that first.
Round-to-nearest in groups of 96, activations as computed; WikiText-2 in windows of 512 tokens.
"""

import argparse
import sys

import torch

ROW = ("all", "q and k", "v", "o", "gate and up", "down")
PARTS = dict(zip(ROW, ((".",), ("q_proj", "k_proj"), ("v_proj",), ("o_proj",), ("gate_proj", "up_proj"),
                       ("down_proj",)), strict=True))
SEED, BITS, GROUP = 42, 4, 96


def perplexities(case, change) -> list[list]:
    """Samples of the model with nothing rounded, then with each kind of linear rounded, after a change."""
    from core.architecture import find_linears
    from core.types import LayerPlan
    from evaluation.engine.ask import evaluate
    from quantization.solvers.rtn import dequantized

    case.model.release()
    model = case.model.module
    change(model)
    linears = find_linears(model)[0]
    weights = {fqn: linear.weight.data for fqn, linear in linears.items()}
    runs = []
    for names in ((), *PARTS.values()):
        for fqn, linear in linears.items():
            rounded = any(name in fqn for name in names)
            linear.weight.data = dequantized(weights[fqn], LayerPlan(BITS, GROUP)) if rounded else weights[fqn]
        with torch.no_grad():
            runs.append(evaluate(model, case.model.tokenizer, task=case.data.task, requests=case.data.requests,
                                 cfg=case.data.cfg))
        print(".", end="", file=sys.stderr, flush=True)
    return runs


def main() -> None:
    """Print perplexities, and paired changes against the model as loaded with the same linears rounded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder with wikitext2 in the hub's layout")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--eval_size", type=int, default=16, help="windows (default: 16)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    from tabulate import tabulate

    from evaluation.statistics.paired import Panel
    from harness.api import one_case
    from quantization.transforms.fold import fold_gains, rotate

    case = one_case(args.model, "fp16", "wikitext2", {
        "data_dir": args.data_dir, "ppl_window": 512, "eval_size": args.eval_size, "threads": args.threads})
    changes = {"as loaded": lambda model: None, "folded": fold_gains, "rotated": lambda model: rotate(model, SEED)}
    runs = [run for change in changes.values() for run in perplexities(case, change)]
    print(file=sys.stderr)
    panel, count, rows = Panel(runs), 1 + len(ROW), []
    means = panel.values["gold_loglik"].mean(0)
    for at, what in enumerate(("nothing", *ROW)):
        row = {"rounded": what}
        for number, name in enumerate(changes):
            run = number * count + at
            row[name] = f"{torch.tensor(-means[run]).exp():.2f}"
            if number:
                d = panel.difference("gold_loglik", at, run)
                row[f"{name}: LL"] = f"{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        rows.append(row)
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    print(f"\nn = {panel.n} windows of 512 tokens of wikitext2, {BITS} bits, groups of {GROUP}, seed {SEED}")


if __name__ == "__main__":
    main()
