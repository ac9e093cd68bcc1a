"""Flags that benchmarks of single rows share, and the grid that they say."""

import argparse

from core.commandline import Parser


def row_parser(about: str | None) -> argparse.ArgumentParser:
    """A parser of one model, data set, budget and seed."""
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dataset", default="mmlu_pro")
    parser.add_argument("--data_dir", help="data sets in the hub's layout (default: the embedded ones)")
    parser.add_argument("--avg_bits", type=float, default=2.25)
    parser.add_argument("--calib_tokens", type=int, default=4096)
    parser.add_argument("--calib_size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache_dir", default="saved_models")
    return parser


def grid_of(args: argparse.Namespace) -> dict:
    """The fields of a grid, as harness/api.py takes them."""
    same = ("data_dir", "avg_bits", "calib_tokens", "calib_size", "threads", "cache_dir")
    return {name: getattr(args, name) for name in same} | {"seeds": (args.seed,), "quantizer": "gptq"}
