#!/usr/bin/env python
"""Print the tables that a results folder holds, or compare two of its cells; reads nothing but that folder."""

import os
import sys
from pathlib import Path

EPILOG = """examples:
  python print_results.py --details                                                      intervals, p values, flips, KL, categories
  python print_results.py --dataset mmlu_pro --avg_bits 2.25 --sort -loglik              one data set, the best first
  python print_results.py --html report.html                                             every figure, one page to keep or to send
  python print_results.py --format latex > table.tex                                     for a paper
  python print_results.py --compare uniform TaCQ --dataset trivia_qa --avg_bits 2.25     two cells, down to the questions that flipped
"""


def build_parser(formats, sorts):
    """The flags."""
    import argparse

    from core.commandline import Parser

    parser = Parser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results_dir", default="results", help="folder with the results (default: results)")
    parser.add_argument("--format", choices=formats, default="terminal", help="how to print (default: terminal)")
    parser.add_argument("--details", action="store_true",
                        help="add the tables of each data set: intervals, p values, flips, KL, categories (csv and json hold the numbers anyway)")
    parser.add_argument("--html", metavar="FILE", help="write the report, one self-contained page with every figure, instead of printing")
    parser.add_argument("--sort", metavar="COLUMN", help=f"order rows by {', '.join(sorts)} (its mean over the data sets); -COLUMN: largest first")
    cells = parser.add_argument_group("filters", "p values, families and marks are those of the whole table, whatever rows are shown")
    for name, of in (("model", str), ("dataset", str), ("avg_bits", float), ("run_type", str), ("method", str), ("seed", int)):
        cells.add_argument(f"--{name}", nargs="+", type=of, metavar=name.upper(), help=f"show only these ({name})")
    pair = parser.add_argument_group("two cells")
    pair.add_argument("--compare", nargs=2, metavar=("A", "B"), help="METHOD, METHOD@SEED, the beginning of a digest, or a file's name without .json")
    pair.add_argument("--all", action="store_true", help="list every question that flipped, not the first 20")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, read, print; 2 on unusable input or where there is nothing."""
    from core.commandline import forgiving_stdout
    from core.errors import UserError
    from report.tables.filters import SORTS
    from report.text.render import FORMATS

    argv = list(sys.argv[1:] if argv is None else argv)
    for at in [i for i, word in enumerate(argv[:-1]) if word == "--sort"][::-1]:  # argparse takes -loglik for a flag
        argv[at:at + 2] = [f"--sort={argv[at + 1]}"]
    forgiving_stdout()
    try:
        return _print(build_parser(FORMATS, SORTS).parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _print(args) -> int:
    from core.errors import UserError
    from harness.progress import plain_console
    from report.records import load_results
    from report.tables import pair as compare
    from report.tables.filters import choose, rows_of, sort_tables
    from report.tables.tables import group, require_rows
    from report.text.render import show, show_story, story_text, text

    results = load_results(Path(args.results_dir))
    require_rows(results, args.results_dir)
    results = choose(results, {name: getattr(args, name) for name in ("model", "dataset", "avg_bits", "run_type")})
    if args.compare:
        unread = [f"--{name}" for name in ("method", "sort", "details") if getattr(args, name)]
        if unread:
            raise UserError(f"{unread[0]} has no meaning with --compare, which prints two cells; leave one of them out")
        fitting = [r for r in results if not args.seed or r.seed in args.seed]
        found = compare.story(*compare.find_pair(fitting, args.compare))
        if args.format == "terminal":
            show_story(found, plain_console(), args.all)
        else:
            sys.stdout.write(story_text(found, args.format, args.all))
        return 0
    if args.html:
        from report.page import write

        print(write(args.results_dir, args.html, results))
        return 0
    if args.all:
        raise UserError("--all lists the questions that flipped between two cells; give --compare A B with it")
    tables = sort_tables(rows_of(group(results), args.method, args.seed), args.sort)
    if args.format == "terminal":
        show(tables, plain_console(), args.details)
    else:
        sys.stdout.write(text(tables, args.format, args.details))
    return 0


if __name__ == "__main__":
    sys.exit(main())
