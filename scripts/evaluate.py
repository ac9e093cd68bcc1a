"""Step 3 of 3 of the circuit-aware method: ask a checkpoint of scripts/quantize.py, or any model, data sets.

    python scripts/evaluate.py --model DIR --tasks mmlu_pro trivia_qa [--eval_size 256]

The answers are those of the grid's row `circuit-native`, byte for byte.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from core.commandline import Parser, exit_status, machine_flags, machine_of, plain_console


def main(argv: list[str] | None = None) -> int:
    """Print each data set's metrics with their intervals; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder of scripts/quantize.py, or alias, hub id or folder")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME", help="data sets (run_taq_icml.py --list)")
    parser.add_argument("--eval_size", type=int, help="documents of each (default: as many as scripts/calibrate.py set "
                        "apart, else 256)")
    machine_flags(parser)
    args = parser.parse_args(argv)
    from rich.table import Table

    from harness.circuit import ask

    table = Table("data set", "n", "metric", "value", "95 %")
    for name in args.tasks:
        answers = ask(args.model, name, args.eval_size, **machine_of(args))
        shown = [*answers.result.task.metrics, "gold_loglik"]
        for metric in shown:
            value = answers.metrics[metric]
            table.add_row(name, str(answers.result.n), metric, f"{value.value:.4f}",
                          f"[{value.low:.4f}, {value.high:.4f}]")
    plain_console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
