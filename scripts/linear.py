"""What task-circuit quantization does to one linear, measured: its weights before and after, which are kept and why,
and what a level of bits costs it.

    python -m scripts.linear --model smollm2-135m --dataset trivia_qa --avg_bits 3.25 --linear layers.15.mlp.down_proj

writes results/linears/<key>.json, which the app's first two pages show.  Gradients, scores and plan come out of the
grid's own store.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from core.commandline import Parser, exit_status, machine_flags, machine_of


def row_flags(parser) -> None:
    """The flags of the scripts that look at one row: which model, task and budget, and of what size."""
    add = parser.add_argument
    add("--model", default="smollm2-135m", metavar="M", help="alias, hub id or folder (default: smollm2-135m)")
    add("--dataset", default="trivia_qa", metavar="D", help="data set (default: trivia_qa)")
    add("--avg_bits", type=float, default=3.25, metavar="B", help="stored bits a weight (default: 3.25)")
    add("--calib_size", type=int, metavar="N", help="documents that calibrate")
    add("--eval_size", type=int, metavar="N", help="documents set apart for evaluation")
    add("--quantizer", choices=("gptq", "rtn"), help="common quantizer (default: rtn)")
    add("--results_dir", default="results", metavar="DIR", help="where the record is written (default: results)")
    machine_flags(parser)


def machine_beside(args) -> dict:
    """What the machine's flags say, without the data folder, which is part of what is asked."""
    return {name: value for name, value in machine_of(args).items() if not name.startswith("data_")}


def main(argv: list[str] | None = None) -> int:
    """Measure and write the record; returns the exit status."""
    import argparse

    parser = Parser(prog="python -m scripts.linear", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--linear", required=True, metavar="NAME", help="full name of a linear, or the end of it, such "
                        "as layers.15.mlp.down_proj")
    row_flags(parser)
    args = parser.parse_args(argv)
    from harness.linear import measure
    from report.measured import asked_of, write_record

    print(write_record(args.results_dir, measure(asked_of(vars(args)), **machine_beside(args))))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
