"""Step 2 of 3 of the circuit-aware method: the best heads and neurons at 16 bits, the rest in NF4, as a checkpoint.

    python scripts/quantize.py --checkpoint smollm2-135m --scores scores.safetensors --output DIR [--fp16_ratio 0.2]
"""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from core.commandline import Parser, exit_status, machine_flags, machine_of
from core.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Quantize a model; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="the model that was scored: alias, hub id or folder")
    parser.add_argument("--scores", type=Path, required=True, help="file that scripts/calibrate.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the checkpoint")
    parser.add_argument("--fp16_ratio", type=float, help="share of heads, and of neurons, at 16 bits (default: the "
                        "settings file's, 0.2)")
    parser.add_argument("--config", type=Path, help="settings file, as in configs/")
    machine_flags(parser, data=False)
    args = parser.parse_args(argv)
    from harness.circuit import quantize, read_settings

    settings = read_settings(args.config, args.checkpoint)
    if args.fp16_ratio is not None:
        if not 0 <= args.fp16_ratio <= 1:
            raise UserError(f"--fp16_ratio is {args.fp16_ratio}; give a share from 0 to 1")
        settings = replace(settings, fp16_ratio=args.fp16_ratio)
    plan, size = quantize(args.checkpoint, args.scores, args.output, settings, **machine_of(args))
    if settings.fp16_ratio in (0, 1):
        print("fp16_ratio 0 keeps no head and no neuron: all linears are NF4" if settings.fp16_ratio == 0 else
              "fp16_ratio 1 keeps every head and neuron: nothing is quantized but linears that belong to neither")
    print(f"{args.output}: {plan.avg_bits:.3f} stored bits a weight ({plan.model_avg_bits:.3f} over the whole model), "
          f"{size / 1e6:.1f} MB of weights; kept: "
          + ", ".join(f"{count} {kind}" for kind, count in plan.notes["kept_units"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
