#!/usr/bin/env python
"""Print the tables that a results folder holds, or compare two of its cells; reads nothing but that folder."""

import gc
import os
import sys
from pathlib import Path

EPILOG = """examples:
  python print_results.py --details                            intervals, p values, flips, KL, categories
  python print_results.py --dataset mmlu_pro --sort -loglik    one data set, the best first
  python print_results.py --html report.html                   every figure, one page to keep or to send
  python print_results.py --format latex > table.tex           for a paper
  python print_results.py --format lm_eval --output FOLDER     for tools that read lm-evaluation-harness's files
  python print_results.py --compare uniform TaCQ --dataset trivia_qa --avg_bits 2.25
                                                               two cells, down to the questions that flipped
  python print_results.py --compare TaCQ THRIFT --over_seeds   a lead over all seeds, every data set
  python print_results.py --sweep act_keep --metric perplexity --figure sweep.svg
                                                               a metric over a number that rows differ in
"""
SWEEP_REFUSES = ("html", "sort", "details", "output", "all", "compare", "over_seeds")
FILTERS = ("model", "dataset", "avg_bits", "run_type")  # they choose cells; --method and --seed, rows of whole tables
PAGE_REFUSES = ("method", "seed", "sort", "details", "format", "output", "all", "compare", "over_seeds")
FILES_REFUSE = ("html", "sort", "details", "all", "compare", "over_seeds")


def build_parser(formats, sorts):
    """The flags."""
    import argparse

    from core.commandline import Parser

    parser = Parser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results_dir", default="results", help="folder with the results (default: results)")
    parser.add_argument("--format", type=_format, choices=(*formats, "lm_eval"),
                        help="how to print (default: terminal); lm_eval: not printed, see --output")
    parser.add_argument("--details", action="store_true", help="add the tables of each data set: intervals, p values, "
                        "flips, KL, categories (csv and json hold the numbers anyway)")
    parser.add_argument("--html", metavar="FILE", help="write the page with every table and figure instead of printing")
    parser.add_argument("--output", metavar="FOLDER", help="with --format lm_eval: write results and samples as "
                        "lm-evaluation-harness does, a folder a row")
    parser.add_argument("--sort", metavar="NAME", help=f"order rows by {', '.join(sorts)} (mean over the data sets), "
                                                       "-NAME: largest first")
    cells = parser.add_argument_group("filters", "p values, families and marks are those of the whole table, whatever "
                                                 "rows are shown")
    filters = {"model": str, "dataset": str, "avg_bits": float, "run_type": str, "method": str, "seed": int}
    for name, of in filters.items():
        cells.add_argument(f"--{name}", nargs="+", type=of, metavar=name.upper(), help=f"show only these ({name})")
    pair = parser.add_argument_group("two cells")
    pair.add_argument("--compare", nargs=2, metavar=("A", "B"),
                      help="METHOD, METHOD@SEED, the beginning of a digest, or a file's name without .json")
    pair.add_argument("--over_seeds", action="store_true", help="of two rows instead of two cells: seed by seed, and "
                      "the lead of B with an interval that holds seeds and documents, for every data set")
    pair.add_argument("--all", action="store_true", help="list every question that flipped, not the first 20")
    pair.add_argument("--margin", type=float, metavar="NATS",
                      help="test as well whether they are equivalent within so many nats a token (two one-sided tests)")
    sweep = parser.add_argument_group("a metric over a number that rows differ in")
    sweep.add_argument("--sweep", metavar="AXIS", help="act_keep, act_bits, kv_bits, bits, avg_bits, or any number "
                       "among the settings of rows or of the grid, such as ratio or calib_tokens; one line a row that "
                       "else is the same")
    sweep.add_argument("--metric", metavar="NAME", help="what is measured: gold_loglik (default), accuracy, "
                       "perplexity, ..., or loglik_change, paired against full precision; with --over_seeds one of "
                       "single documents, such as gold_option or accuracy, or kl from full precision")
    sweep.add_argument("--figure", type=Path, metavar="FILE",
                       help="draw the lines into this .svg or .png instead of printing")
    return parser


def _format(name: str) -> str:
    from core.errors import UserError

    if name == "html":
        raise UserError("--format html is not printed; --html FILE writes the page with every table and figure")
    return name


def main(argv: list[str] | None = None) -> int:
    """Parse, read, print; 2 on unusable input or where there is nothing."""
    from core.commandline import exit_status
    from report.tables.filters import SORTS
    from report.text.render import FORMATS

    argv = list(sys.argv[1:] if argv is None else argv)
    for at in [i for i, word in enumerate(argv[:-1]) if word == "--sort"][::-1]:  # argparse takes -loglik for a flag
        argv[at:at + 2] = [f"--sort={argv[at + 1]}"]
    return exit_status(lambda: _print(build_parser(FORMATS, SORTS).parse_args(argv)))


def _print(args) -> int:
    from report.records import load_results
    from report.tables.filters import choose
    from report.tables.tables import require_rows

    _refuse(args)
    every = load_results(Path(args.results_dir))
    require_rows(every, args.results_dir)
    results = choose(every, {name: getattr(args, name) for name in FILTERS})
    if args.html is not None:
        from report.page import write

        gc.enable()  # figures hold each other
        print(write(args.results_dir, args.html, results))
    elif args.sweep:
        _print_sweep(args, results)
    elif args.compare:
        _print_pair(args, results)
    elif args.format == "lm_eval":
        _write_files(args, results)
    else:
        _print_tables(args, results, every)
    return 0


def _refuse(args) -> None:
    """A flag that would be without effect is an error."""
    from core.errors import UserError

    given = [name for name in SWEEP_REFUSES if getattr(args, name)]
    if args.sweep and given:
        raise UserError(f"--{given[0]} has no meaning with --sweep, which prints lines over one number; leave one of "
                        "them out")
    if args.metric and not (args.sweep or args.over_seeds):
        raise UserError("--metric is of --sweep AXIS, or of --compare A B --over_seeds; give one of these with it")
    if args.figure and not args.sweep:
        raise UserError("--figure is of --sweep AXIS; give that with it")
    given = [name for name in PAGE_REFUSES if getattr(args, name)]
    if args.html is not None and args.compare:
        raise UserError("--compare has no meaning with --html: it prints two cells, and a page holds all; leave one of "
                        "them out")
    if args.html is not None and given:
        raise UserError(f"--{given[0]} has no meaning with --html, whose page holds every row and all details of the "
                        "cells that --model, --dataset, --avg_bits and --run_type choose; leave one of them out")
    if (args.format == "lm_eval") != bool(args.output):
        raise UserError("--format lm_eval writes files, so it needs --output FOLDER, and --output has no meaning "
                        "without it; give both or neither")
    given = [name for name in FILES_REFUSE if getattr(args, name)]
    if args.output and given:
        raise UserError(f"--{given[0]} has no meaning with --format lm_eval, which writes every number of every row; "
                        "leave one of them out")
    given = [name for name in ("method", "sort", "details") if getattr(args, name)]
    if args.compare and given:
        raise UserError(f"--{given[0]} has no meaning with --compare, which prints two cells; leave one of them out")
    if args.all and not args.compare:
        raise UserError("--all lists the questions that flipped between two cells; give --compare A B with it")
    if args.margin is not None and not args.compare:
        raise UserError("--margin tests two cells for equivalence; give --compare A B with it")
    if args.over_seeds and not args.compare:
        raise UserError("--over_seeds is of two rows; give --compare A B with it")
    given = [name for name in ("all", "margin") if getattr(args, name)]
    if args.over_seeds and given:
        raise UserError(f"--{given[0]} is of two cells and --over_seeds of two rows; leave one of them out")
    if args.margin is not None and not 0 < args.margin < float("inf"):
        raise UserError(f"--margin is {args.margin:g}; give nats a token above 0, such as 0.05")


def _write_files(args, results: list) -> None:
    from report.lm_eval import write
    from report.tables.filters import known

    for name, of in (("method", "name"), ("seed", "seed")):
        if wanted := getattr(args, name):
            known(name, wanted, {getattr(r, of) for r in results})
            results = [r for r in results if getattr(r, of) in wanted]
    for path in write(args.output, results):
        print(path)


def _print_tables(args, results: list, every: list) -> None:
    from core.commandline import plain_console
    from report.tables.faithfulness import faithfulness
    from report.tables.filters import rows_of, sort_tables
    from report.tables.tables import group

    tables = sort_tables(rows_of(group(results, every), args.method, args.seed), args.sort)
    curves = [] if args.method else faithfulness(results)
    if args.format in (None, "terminal"):
        from report.text.terminal import show, show_curves

        show(tables, plain_console(), args.details)
        show_curves(curves, plain_console())
    else:
        from report.text.render import text

        sys.stdout.write(text(tables, args.format, args.details, curves))


def _print_sweep(args, results: list) -> None:
    from core.commandline import plain_console
    from report.tables.sweeps import METRIC, sweep

    results = [r for r in results if (not args.seed or r.seed in args.seed)
               and (not args.method or r.name in (*args.method, "fp16"))]
    lines = sweep(results, args.sweep, args.metric or METRIC)
    if args.figure:
        from report.figures.style import save
        from report.figures.sweeps import drawing

        print(save(args.figure, drawing(lines, args.sweep)))
    elif args.format in (None, "terminal"):
        from report.text.sweeps import sheets
        from report.text.terminal import show_sheet

        for one in sheets(lines, args.sweep):
            show_sheet(one, plain_console())
    else:
        from report.text.render import sweep_text

        sys.stdout.write(sweep_text(lines, args.sweep, args.format))


def _print_pair(args, results: list) -> None:
    from core.commandline import plain_console
    from report.tables.pair import find_pair, story

    reference = "fp16" if args.over_seeds else None  # of whatever seed
    chosen = [r for r in results if not args.seed or r.seed in args.seed or r.name == reference]
    if args.over_seeds:
        return _print_leads(args, chosen)
    two = story(*find_pair(chosen, args.compare), margin=args.margin)
    if args.format in (None, "terminal"):
        from report.text.terminal import show_story

        show_story(two, plain_console(), args.all)
    else:
        from report.text.render import story_text

        sys.stdout.write(story_text(two, args.format, args.all))



def _print_leads(args, results: list) -> None:
    from core.commandline import plain_console
    from report.tables.seeds import METRIC, leads

    lines = leads(results, args.compare, args.metric or METRIC)
    if args.format in (None, "terminal"):
        from report.text.seeds import leads_sheet, notes
        from report.text.terminal import show_sheet

        console = plain_console()
        show_sheet(leads_sheet(lines, args.compare), console)
        for note in notes(lines, args.compare):
            console.print(note, markup=False, highlight=False)
    else:
        from report.text.render import leads_text

        sys.stdout.write(leads_text(lines, args.compare, args.format))


if __name__ == "__main__":
    gc.disable()  # of no use to a process that reads, prints and ends, and a tenth of its time
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # starting threads costs more than these small products gain
    sys.exit(main())
