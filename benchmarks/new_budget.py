"""Seconds from a new budget to a plan and its weights in the model, of a row whose forms are solved and priced already.

    python -m benchmarks.new_budget --dataset code_mmlu --avg_bits 2.25 --others 2.35 2.5 2.75 --data_dir DATA

The first budget loads the model, and solves and prices the library if the store has none; its seconds say what that
cost now.  Budgets of the same whole bits share a library.  No gradient is taken and nothing is solved for the others:
a pass over the calibration documents would be an error here.
"""

import time

from tabulate import tabulate

from benchmarks.rows import grid_of, row_parser
from harness.api import one_case, put_weights
from harness.stages import library, prices
from harness.stages.plan import plan


def refuse(*_args, **_more):
    """In the place of what must not run again."""
    raise RuntimeError("a new budget must read the library from the store, and yet it was made again")


def main() -> None:
    parser = row_parser(__doc__)
    parser.add_argument("--method", default="TALK-stitched[steps=0]")
    parser.add_argument("--others", type=float, nargs="+", default=[2.35, 2.5, 2.75])
    args = parser.parse_args()
    rows = []
    for bits in (args.avg_bits, *args.others):
        case = one_case(args.model, args.method, args.dataset, grid_of(args) | {"avg_bits": bits})
        case.model.originals.restore()  # loads the model, which is no part of it
        started = time.perf_counter()
        planned = plan(case)
        between = time.perf_counter()
        true = put_weights(case, planned)
        ended = time.perf_counter()
        rows.append([f"{bits:g}", f"{true.avg_bits:.4f}", f"{between - started:.1f}", f"{ended - between:.1f}",
                     f"{ended - started:.1f}"])
        library.walk = prices.gradient_dots = refuse  # what solves and what takes gradients
    print(tabulate(rows, ["budget", "stored", "plan, s", "weights, s", "both, s"], "github", disable_numparse=True))


if __name__ == "__main__":
    main()
