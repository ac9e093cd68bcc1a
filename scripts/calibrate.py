"""Step 1 of 3 of the circuit-aware method: which heads and neurons carry the task.

    python scripts/calibrate.py --model smollm2-135m --output scores.safetensors [--config configs/smollm2-135m.yaml]

Then scripts/quantize.py keeps the best of them at 16 bits and scripts/evaluate.py asks the result.
"""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from core.commandline import Parser, exit_status, machine_flags, machine_of


def main(argv: list[str] | None = None) -> int:
    """Score a model; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", help="alias, hub id or folder (default: the settings file's)")
    parser.add_argument("--output", type=Path, required=True, help="file for the scores, .safetensors")
    parser.add_argument("--config", type=Path, help="settings file, as in configs/")
    parser.add_argument("--dataset", help="data set whose answers the circuit carries (default: the settings file's)")
    parser.add_argument("--eval_size", type=int, default=256, help="documents set apart for scripts/evaluate.py")
    parser.add_argument("--seed", type=int, default=42, help="draw of the worked documents")
    machine_flags(parser)
    args = parser.parse_args(argv)
    from harness.circuit import calibrate, read_settings

    settings = read_settings(args.config, args.model)
    settings = replace(settings, dataset=args.dataset or settings.dataset)
    scores = calibrate(settings, args.output, seeds=(args.seed,), eval_size=args.eval_size, **machine_of(args))
    heads = scores.notes["heads"]
    best = sorted(((value, b, h) for b, row in enumerate(heads) for h, value in enumerate(row)), reverse=True)[:5]
    print(f"{args.output}: importance of {sum(map(len, heads))} heads and of the neurons of {len(heads)} blocks, on "
          f"{settings.dataset}")
    print("best heads: " + ", ".join(f"block {b} head {h} ({value:.4f} {scores.unit.removesuffix('/weight')})"
                                     for value, b, h in best))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
