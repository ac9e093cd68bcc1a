"""Faithfulness of a circuit: quantize all but the best heads and neurons, and see how much of the task is left.

    python scripts/faithfulness.py --model smollm2-135m --tasks trivia_qa mmlu_pro code_mmlu --figure faithfulness.svg

Each share of the heads, and of the neurons, stays at 16 bits: the best first, the worst first, at random; beside them
uniform bits at what the best-first row stores.  Finished cells are kept: the same command goes on where it stopped, and
several processes that run it share the work.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from core.commandline import Parser, exit_status, machine_flags, machine_of, plain_console


def main(argv: list[str] | None = None) -> int:
    """Run the cells, print the curves; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", default="smollm2-135m", help="alias, hub id or folder (default: smollm2-135m)")
    parser.add_argument("--tasks", nargs="+", default=["trivia_qa", "mmlu_pro", "code_mmlu"], metavar="NAME",
                        help="data sets (run_taq_icml.py --list; default: trivia_qa mmlu_pro code_mmlu)")
    parser.add_argument("--scorer", default="circuit", help="what ranks heads and neurons: circuit, or one of the "
                        "scorers of heads alone, such as heads-ablation (default: circuit)")
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3], metavar="B",
                        help="bits of what is quantized (default: 2 3)")
    parser.add_argument("--shares", nargs="+", type=float, metavar="K",
                        help="shares of heads and neurons at 16 bits (default: 0.01 0.02 0.05 0.1 0.2 0.3 0.5)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S", help="seeds of the random "
                        "orders; the first also draws the documents that the scorer reads (default: 0 1 2)")
    parser.add_argument("--quantizer", default="rtn", choices=("rtn", "gptq"), help="default: rtn")
    parser.add_argument("--grad_dtype", default="fp32", choices=("fp32", "bf16", "fp16"),
                        help="arithmetic of the scorer's gradients (default: fp32)")
    parser.add_argument("--eval_size", type=int, default=256, help="documents asked of each (default: 256)")
    parser.add_argument("--tolerance", type=float, default=0.01, help="bits a weight by which uniform may store less "
                        "than the best-first row (default: 0.01; a model of few large linears needs more)")
    parser.add_argument("--results_dir", default="results", help="where results are written (default: results)")
    parser.add_argument("--format", default="terminal", choices=("terminal", "markdown"), help="default: terminal")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves into this .svg or .png too")
    machine_flags(parser)
    args = parser.parse_args(argv)
    from harness.faithfulness import SHARES, Asked, run
    from report.figures.faithfulness import drawing
    from report.figures.style import save
    from report.tables.faithfulness import faithfulness
    from report.text.render import text
    from report.text.terminal import show_curves

    asked = Asked(args.model, tuple(args.tasks), args.scorer, tuple(args.bits), tuple(sorted(args.shares or SHARES)),
                  tuple(args.seeds))
    results = run(asked, quantizer=args.quantizer, grad_dtype=args.grad_dtype, eval_size=args.eval_size,
                  tolerance=args.tolerance, results_dir=args.results_dir, **machine_of(args))
    families = faithfulness(results)
    if not families:
        print("no curve: full precision, everything quantized or every best-first cell has no result", file=sys.stderr)
    if args.format == "markdown":
        sys.stdout.write(text((), "markdown", curves=families))
    else:
        show_curves(families, plain_console())
    if args.figure and families:
        print(save(args.figure, drawing(families)))
    failed = [result for result in results if not result.ok]
    for result in failed:
        print(f"failed: {result.name} on {result.dataset}: {result.error}", file=sys.stderr)
    return 1 if failed or not families else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
