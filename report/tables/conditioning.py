"""What conditioning is worth: a method calibrated as the grid says, against the same method calibrated on another text.

Both are asked the same documents, so these are paired; a method's seeds are averaged document by document first.  The
interval and the sign-flip test are over documents, for the draws of calibration documents that were made; what each
draw alone says stands beside them.  Only rows at equal bits; Holm's correction is over a data set's pairs.
"""

import re
from collections.abc import Sequence

from core.digest import canonical_json
from evaluation.statistics.formulas import holm
from evaluation.statistics.paired import Panel
from report.schema import Result, equal_bits

TEXT = ("calib", "calib_dataset")  # the settings that say on what a row is calibrated


def calibrated_on(cell: Result) -> str | None:
    """The text that the row's solvers, gradients or prompts are of; None if it reads none."""
    solved, asked = cell.solver_calibration or {}, cell.calibration
    return solved.get("text") or (asked.get("text") if asked.get("read") else None)


def conditioning(panel: Panel, cells: Sequence[Result]) -> list[dict]:
    """One row a method and other text: the difference in its favour, nats a token and share right, with p values."""
    families: dict[tuple, dict[str, dict[int, int]]] = {}
    for place, cell in enumerate(cells):
        rest = {name: value for name, value in cell.method.settings.items() if name not in TEXT}
        key = re.split(r"[\[@]", cell.name)[0], canonical_json([rest, cell.method.options]), cell.avg_bits
        families.setdefault(key, {}).setdefault(cell.name, {})[cell.seed] = place
    rows = []
    for variants in families.values():
        plain = next((name for name, places in variants.items() if not _told(cells, places)), None)
        rows += [row for name, places in variants.items() if plain is not None and _told(cells, places)
                 if (row := _pair(panel, cells, first=places, second=variants[plain]))]
    for row, p in zip(rows, holm([row["p_raw"] for row in rows]), strict=True):
        row["p"] = p
    return rows


def _told(cells: Sequence[Result], places: dict[int, int]) -> bool:
    """Whether the row's own brackets say on what it is calibrated."""
    return any(name in cells[place].method.settings for place in places.values() for name in TEXT)


def _pair(panel: Panel, cells: Sequence[Result], first: dict[int, int], second: dict[int, int]) -> dict | None:
    """``second`` minus ``first``, both by seed; None without a seed in common, at other bits, without documents, or if
    both are calibrated on the same ones.
    """
    seeds = sorted(first.keys() & second.keys())
    pairs = [(first[seed], second[seed]) for seed in seeds]
    if not pairs or not panel.n or not all(_even(cells[a], cells[b]) for a, b in pairs):
        return None
    other, own = cells[pairs[0][0]], cells[pairs[0][1]]
    if _read(other) == _read(own) is not None:
        return None
    runs = [a for a, _ in pairs], [b for _, b in pairs]
    changes = {metric: panel.difference(metric, *runs) for metric in ("gold_loglik", "accuracy")
               if metric in panel.values}
    return {"method": own.name, "on": calibrated_on(own), "other": other.name, "rather_than": calibrated_on(other),
            "seeds": seeds, **changes, "p_raw": panel.permutation_p("gold_loglik", *runs),
            "by_seed": [panel.difference("gold_loglik", a, b)["value"] for a, b in pairs]}


def _read(cell: Result) -> str | None:
    """Digest of what calibrates a row."""
    return (cell.solver_calibration or cell.calibration).get("digest")


def _even(first: Result, second: Result) -> bool:
    return equal_bits(first.bits.average, second.bits.average, second.tolerance)
