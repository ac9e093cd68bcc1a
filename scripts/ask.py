"""Ask a question of your own: the model as loaded and a quantized row of it answer from the same prompt.

    python -m scripts.ask --method TaCQ --dataset trivia_qa --avg_bits 3.25 --question "Who wrote Hamlet?"

prints both answers and writes results/asked/<key>.json, which the app shows.  The plan comes out of the grid's own
store, so a row that a grid has made answers at once.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from core.commandline import Parser, exit_status
from scripts.linear import machine_beside, row_flags


def main(argv: list[str] | None = None) -> int:
    """Ask, print and write the record; returns the exit status."""
    import argparse

    parser = Parser(prog="python -m scripts.ask", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", required=True, metavar="TEXT", help="what both are asked, up to 4,000 characters")
    parser.add_argument("--method", default="TaCQ", metavar="M", help="row whose weights answer (default: TaCQ)")
    row_flags(parser)
    args = parser.parse_args(argv)
    from harness.question import ask
    from report.measured import asked_of, write_record

    args.question = args.question.strip()
    record = ask(asked_of(vars(args)), **machine_beside(args))
    print(f"{record.model} as loaded: {record.loaded}")
    print(f"{record.method}, {record.average:.3f} bits: {record.quantized}")
    print(write_record(args.results_dir, record))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
