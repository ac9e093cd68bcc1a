"""Does offloading change a number?  Tiny random models of all causal-LM families of ``transformers``.

    python -m benchmarks.offload_families [--family NAME ...]

Logits of one text, and Σ|g| of every linear over two texts, of the model as it is and of the same with its blocks in
files, where a block that comes to work is a copy, as on a GPU.  Float32, one thread; about a minute in all.  The exit
status is 1 if a family fails, or differs by more than the rounding of a sum.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from benchmarks.tiny_families import FAMILIES, tiny_model
from core.architecture import find_blocks, find_linears
from core.commandline import Parser, exit_status
from core.errors import UserError, one_line
from core.forward import behaviour, call, device_of, pad
from core.model import ready
from core.offload import Offload, Scratch
from streams.gradients import gradient_sums

SAME, NEAR, REFUSED, OTHER, UNBUILT = ("the same to the bit", "differ by the rounding of a sum", "refused",
                                       "cannot be run whole", "not built")
ROUNDING = 1e-5  # of the largest number of a tensor


class Copied(Offload):
    """Blocks that come to work are copies."""

    def _brought(self, rest: torch.Tensor) -> torch.Tensor:
        return super()._brought(rest).clone()


def numbers(model: torch.nn.Module) -> list[torch.Tensor]:
    """Logits, and the sums of gradients of every linear."""
    from tests.tiny import calib_set

    with torch.no_grad():
        logits = call(model, *pad([range(3, 19)], device_of(model)), last_only=False).logits.clone()
    linears = find_linears(model)[0]
    return [logits, *gradient_sums(model, linears, calib_set(2), ("abs",)).sums["abs"].values()]


def compare(family: str, folder: Path) -> tuple[str, str]:
    """What came out for one family, and why."""
    try:
        model = ready(tiny_model(family))
    except Exception as error:  # a family whose configuration needs parts that no generic table gives
        return UNBUILT, one_line(error)
    try:
        behaviour(model)
        whole = numbers(model)
    except Exception as error:  # whatever benchmarks.families says of it
        return OTHER, one_line(error)
    try:
        Copied(model, find_blocks(model)[1], torch.device("cpu"), Scratch(folder))
        apart = numbers(model)
    except UserError as error:
        return REFUSED, str(error)
    if all(torch.equal(a, b) for a, b in zip(whole, apart, strict=True)):
        return SAME, ""
    worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(whole, apart) if a.any())
    if worst > ROUNDING:
        raise SystemExit(f"{family}: numbers of the offloaded model differ by {worst:.1e} of the largest")
    return NEAR, f"by {worst:.1e} of the largest number of a tensor"


def main(argv: list[str] | None = None) -> int:
    """Compare, print counts; returns the exit status."""
    import transformers

    parser = Parser(prog="python -m benchmarks.offload_families", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=FAMILIES, metavar="NAME", help="default: all")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for family in args.family:
            state, why = compare(family, Path(folder))
            counts[state] += 1
            if state in (NEAR, REFUSED):
                print(f"{family}: {state} {why}", flush=True)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: "
          + ", ".join(f"{count} {state}" for state, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
