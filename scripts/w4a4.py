"""Four bits for weights and activations: perplexity against the share of activation channels kept at 16 bits.

    python -m scripts.w4a4 --frac_salient_weights 0.01 --plot_name opt-125m --model_path facebook/opt-125m \\
        --eval_ds_path wikitext2 --calib_ds_path c4

writes plots/opt-125m.png, .svg and .csv: the curve of 4-bit activations, beside it full precision, 4-bit weights with
16-bit and with 8-bit activations, and 95 % intervals.  Weights: groups of 128, the salient input channels of each
linear at 16 bits.  Finished cells are kept: the same command goes on where it stopped, and several processes share the
work.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from core.commandline import Parser, exit_status, machine_flags, machine_of, plain_console


def build_parser():
    """The flags."""
    import argparse

    parser = Parser(prog="python -m scripts.w4a4", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--frac_salient_weights", type=float, default=0.01, metavar="S", help="share of each linear's input channels "
        "whose weights stay at 16 bits, those with the largest mean |x| (default: 0.01)")
    add("--frac_salient_activations", nargs="+", type=float, metavar="S", help="shares of activation channels at 16 "
        "bits (default: 0 0.1 ... 0.9)")
    add("--plot_name", required=True, metavar="N", help="name of the files that are written below --plot_dir")
    add("--model_path", required=True, metavar="M", help="alias, hub id or folder")
    add("--eval_ds_path", default="wikitext2", metavar="D", help="data set (run_taq_icml.py --list), or a .txt, "
        ".parquet or .jsonl file of text (default: wikitext2)")
    add("--calib_ds_path", default="c4", metavar="C", help="what channels are ranked on: c4, wikitext2, task, or a "
        "file of text (default: c4; the published code takes the Pile's validation split)")
    add("--calib_docs", type=int, default=256, metavar="N", help="windows of 512 tokens of it (default: 256)")
    add("--eval_size", type=int, default=40, metavar="N", help="windows, or documents, that evaluate (default: 40)")
    add("--ppl_window", type=int, default=2048, metavar="T", help="tokens of a window (default: 2048)")
    add("--metric", metavar="NAME", help="what is drawn (default: perplexity; of a task gold_loglik)")
    add("--transform", nargs="+", default=["none"], choices=("none", "smooth", "hadamard"), help="what is folded into "
        "the model first; several are several curves, hadamard the mean of three seeds (default: none)")
    add("--seeds", nargs="+", type=int, metavar="S", help="seeds of rotations (default: 42 43 44)")
    add("--published", action="store_true", help="rank channels by the mean over documents of each one's mean, as the "
        "published code does")
    add("--plot_dir", type=Path, default=Path("plots"), metavar="DIR", help="default: plots")
    add("--results_dir", default="results", metavar="DIR", help="where results are written (default: results)")
    add("--format", default="terminal", choices=("terminal", "markdown", "csv", "json", "latex"),
        help="default: terminal")
    machine_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the cells, print and draw the curves; returns the exit status."""
    args = build_parser().parse_args(argv)
    from core.errors import UserError
    from harness.w4a4 import Asked, moved, run
    from report.tables.sweeps import CHANGE, sweep

    if not args.plot_name.strip() or Path(args.plot_name).name != args.plot_name:
        raise UserError(f"--plot_name is {args.plot_name!r}; give a plain file name, such as opt-125m")
    keeps = args.frac_salient_activations
    asked = Asked(args.model_path, _text(args.eval_ds_path), args.frac_salient_weights,
                  **({"keeps": tuple(sorted(set(keeps)))} if keeps else {}), transforms=tuple(args.transform))
    given = {"seeds": tuple(args.seeds)} if args.seeds else {}
    calib = _text(args.calib_ds_path)
    if not args.data_dir and {asked.dataset, calib} & {"c4", "wikitext2"}:
        given["data_source"] = "hub"  # neither is embedded
    args.plot_dir.mkdir(parents=True, exist_ok=True)
    given |= machine_of(args) | {"eval_size": args.eval_size, "ppl_window": args.ppl_window}
    results = run(asked, calib, args.calib_docs, published=args.published, results_dir=args.results_dir, **given)
    failed = [result for result in results if not result.ok]
    for result in failed:
        print(f"failed: {result.name} on {result.dataset}: {result.error}", file=sys.stderr)
    good = [result for result in results if result.ok]
    if not failed or len(good) > 2:
        metric = args.metric or ("perplexity" if good[0].metrics.get("perplexity") else "gold_loglik")
        _show(args, *(sweep(good, "act_keep", name) for name in (metric, CHANGE)), moved(asked, **given))
    return 1 if failed else 0


def _text(name: str) -> str:
    """A data set's name as it is; a file or folder as a text of the user's own."""
    return f"file:{name}" if Path(name).exists() else name


def _show(args, lines: list, changes: list, read: list[dict]) -> None:
    """Print the numbers, and write them and the plot."""
    from report.figures.style import save
    from report.figures.sweeps import drawing
    from report.text.render import sheet_text, sweep_text
    from report.text.sweeps import moved_sheet, sheets
    from report.text.terminal import show_sheet

    every = [*sheets(lines, "act_keep"), *sheets(changes, "act_keep"), moved_sheet(read)]
    if args.format == "terminal":
        for one in every:
            show_sheet(one, plain_console())
    elif args.format in ("csv", "json"):
        sys.stdout.write(sweep_text(lines + changes, "act_keep", args.format))
    else:
        print("\n\n".join(sheet_text(one, args.format) for one in every))
    svg = drawing(lines, "act_keep")
    for suffix, text in ((".svg", svg), (".png", svg), (".csv", sweep_text(lines + changes, "act_keep", "csv"))):
        print(save(args.plot_dir / f"{args.plot_name}{suffix}", text), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(exit_status(main))
