#!/usr/bin/env python
"""Print the tables that a results folder holds; reads nothing but that folder."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Parse, read, print; 2 on unusable input."""
    from core.errors import UserError
    from harness.progress import plain_console
    from harness.render import FORMATS, show, text
    from harness.tables import require_rows, tables

    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python print_results.py --format markdown --details > table.md")
    parser.add_argument("--results_dir", default="results", help="folder with the results (default: results)")
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="how to print (default: terminal)")
    parser.add_argument("--details", action="store_true", help="add one table a data set: intervals, p values, flips, KL, parse failures")
    args = parser.parse_args(argv)
    try:
        found = require_rows(tables(Path(args.results_dir)), args.results_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.format == "terminal":
        show(found, plain_console(), args.details)
    else:
        sys.stdout.write(text(found, args.format, args.details))
    return 0


if __name__ == "__main__":
    sys.exit(main())
