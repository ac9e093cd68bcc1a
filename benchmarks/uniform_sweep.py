"""What uniform bits cost: round-to-nearest of the demo's model from the lowest level up to 4.5 bits.

Prints, per data set, accuracy and gold log-likelihood (nats a token) with the paired change against full
precision.  A budget to compare methods at should hurt clearly, and hurt clearly less than the lowest level does.
Run: python -m benchmarks.uniform_sweep [--results_dir DIR --cache_dir DIR]
"""

import argparse
import sys
from dataclasses import replace

import pandas as pd

from harness.grid import cells_of
from harness.jobs.launch import run_local
from harness.presets import EVERY, row_grid
from harness.progress import Progress
from report.tables.tables import tables_of
from report.text.details import change
from report.text.numbers import number, percent

BUDGETS = (2.1875, 3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5)  # 2.1875 = every linear at 2 bits in groups of 96


def sweep_table(tables) -> str:
    """One row a budget, one pair of columns a data set, as Markdown."""
    rows = {}
    for table in tables:
        for cell in table.frame.to_dict("records"):
            row = rows.setdefault(cell["bits"], {"bits": f"{cell['bits']:.3f}"})
            row[f"{cell['dataset']} right"] = percent(cell["accuracy"])
            row[f"{cell['dataset']} LL"] = number(cell["loglik"], 3)
            row[f"{cell['dataset']} ΔLL [95 %]"] = change(cell)
    return pd.DataFrame([rows[bits] for bits in sorted(rows)]).to_markdown(index=False, disable_numparse=True)


def main(argv: list[str] | None = None) -> int:
    """Run the sweep and print one row a budget and data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results_dir", default="results/uniform_sweep")
    parser.add_argument("--cache_dir", default="saved_models")
    parser.add_argument("--eval_size", type=int, default=2048)
    args = parser.parse_args(argv)
    grid = row_grid(methods=("uniform",), datasets=EVERY["datasets"], avg_bits=BUDGETS,
                    eval_size=args.eval_size, results_dir=args.results_dir, cache_dir=args.cache_dir)
    # a sweep of the control itself: the random rows would say nothing here
    grid = replace(grid, methods=("fp16", "uniform"))
    with Progress(len(cells_of(grid))) as progress:
        results = run_local(grid, None, progress, [])
    print(sweep_table(tables_of(args.results_dir, results)))
    return int(any(not r.ok for r in results))


if __name__ == "__main__":
    sys.exit(main())
