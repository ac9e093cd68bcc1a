"""A row against its own shuffles (core/shuffle.py): they have no rows, a line says how many of them it beats."""

from collections.abc import Sequence

import numpy as np

from core.method_names import without_settings
from core.shuffle import SHUFFLE
from report.records import Result

METRIC = "gold_loglik"


def is_shuffle(cell: Result) -> bool:
    """Whether a cell is a shuffle of another row."""
    return bool(cell.method.settings.get(SHUFFLE.name))


def against_shuffles(cells: Sequence[Result], shuffles: Sequence[Result]) -> list[dict]:
    """Of each row that was shuffled, by seed: draws, how many it beats in gold log-likelihood, their mean and spread.

    A tie counts as half a draw beaten.  ``share`` is the row's percentile among its draws, 0 to 1.
    """
    rows = []
    for cell in cells:
        draws = np.array([one.metrics[METRIC].value for one in shuffles
                          if one.seed == cell.seed and without_settings(one.name, (SHUFFLE.name,)) == cell.name])
        if not len(draws):
            continue
        own = cell.metrics[METRIC].value
        beaten = float((draws < own).sum() + 0.5 * (draws == own).sum())
        rows.append({"method": cell.name, "seed": cell.seed, "draws": len(draws), "beaten": beaten,
                     "share": beaten / len(draws), "own": own, "mean": float(draws.mean()),
                     "sd": float(draws.std(ddof=1)) if len(draws) > 1 else None,
                     "low": float(draws.min()), "high": float(draws.max())})
    return rows


def shuffle_lines(dataset: str, rows: Sequence[dict]) -> list[str]:
    """The same in words."""
    lines = []
    for row in rows:
        spread = "" if row["sd"] is None else f", sd {row['sd']:.2f}"
        what = "fill orders" if row["method"].partition("[")[0] == "uniform" else "shuffles of its own scores"
        lines.append(f"{dataset}: {row['method']}, seed {row['seed']}, is ahead of {row['beaten']:g} of {row['draws']} "
                     f"{what} ({row['own']:.2f} against {row['mean']:.2f}{spread}, {row['low']:.2f} to "
                     f"{row['high']:.2f} nats a token)")
    return lines
