"""Every figure's numbers as plain frames, from the result files and the tables made of them.

A part holds cells that may be compared: one model under one set of settings.  Names come from files that anybody may
have written, so they are made harmless to fonts and XML here, once; quoting them for HTML is the page's task.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from core.registry import CONTROLS
from report.records import Result, load_results
from report.schema import equal_bits
from report.strata import groups_of
from report.tables.comparison import stem
from report.tables.groups import comparable, headings
from report.tables.tables import TableData, group
from report.text.numbers import none

LONGEST = 32  # letters of a name in a figure
SHARES = ("accuracy", "f1")  # metrics that are shown as percent
NUMBERS = ["main", "main_low", "main_high", "loglik", "d_loglik", "d_loglik_low", "d_loglik_high"]


@dataclass(frozen=True)
class Part:
    """One model under one set of settings: its tables and its finished cells."""

    key: str  # its place on the page
    title: str
    tables: tuple[TableData, ...]
    cells: tuple[Result, ...]  # those that have rows
    methods: tuple[str, ...]  # in the tables' order
    datasets: tuple[str, ...]  # likewise
    tolerance: float = 0.01  # stored bits by which two rows may differ and still stand at equal bits
    members: tuple[Result, ...] = ()  # every result, failed ones and older documents included
    differing: tuple[str, ...] = ()  # names of the settings that tell this part from the others


def plain(value) -> str:
    """A name that a font and an XML file can hold: printable, on one line, not too long; names often differ at their
    ends."""
    text = whole(value)
    return text if len(text) <= LONGEST else text[: LONGEST // 2] + "…" + text[1 - LONGEST // 2:]


def whole(value) -> str:
    """The same, however long."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def load(folder: Path | str) -> list[Part]:
    """Every part of a results folder, the newest first; none where the folder holds no result."""
    return parts_of(load_results(Path(folder)))


def parts_of(results: list[Result]) -> list[Part]:
    """Every part of these results, the newest first."""
    groups = comparable(results)
    known = [_settings(members) for members in groups]
    differing = tuple(name for name in sorted({name for of in known for name in of})
                      if any(of.get(name, ...) != known[0].get(name, ...) for of in known))
    return [_part(f"part-{i}", heading, members, tables=tuple(group(members, results)), differing=differing)
            for i, (heading, members) in enumerate(zip(headings(groups), groups), 1)]


def _settings(members: Sequence[Result]) -> dict:
    return members[0].settings | {"machine": members[0].machine}


def _part(key: str, heading: str, members: list[Result], *, tables: tuple[TableData, ...],
          differing: tuple[str, ...]) -> Part:
    cells = {cell.file: cell for table in tables for cell in table.cells}.values()
    rows = [row for table in tables for row in table.rows]
    methods = sorted(dict.fromkeys(row["method"] for row in rows), key=_control)
    return Part(key=key, title=heading, tables=tables, cells=tuple(cells), methods=tuple(methods),
                datasets=tuple(dict.fromkeys(row["dataset"] for row in rows)), tolerance=members[0].tolerance,
                members=tuple(members), differing=differing)


def _control(method: str) -> int:
    return CONTROLS.index(method) if method in CONTROLS else len(CONTROLS)


def budgets(part: Part) -> list[float | None]:
    """The budgets that the part's cells were held to, the smallest first; None alone where no cell has one."""
    return sorted({c.avg_bits for c in part.cells if c.avg_bits is not None}) or [None]


def over_seeds(rows: Sequence[dict], name: str) -> tuple[float | None, float | None, float | None]:
    """The mean of a number over rows, one a seed, and the span of all their intervals; None where no row has it."""
    rows = [row for row in rows if not none(row.get(name))]
    if not rows:
        return None, None, None
    low, high = min(row[f"{name}_low"] for row in rows), max(row[f"{name}_high"] for row in rows)
    return sum(row[name] for row in rows) / len(rows), low, high


def points(table: TableData, tolerance: float) -> pd.DataFrame:
    """One row a data set and method of a table: means over the seeds, and the span of the seeds' intervals.

    ``main`` is the task's first metric, named in ``metric`` and, as tables have it, in ``label``.
    """
    budget, means = table.about["avg_bits"], []
    for dataset in table.datasets:
        (metric, label), rows = next(iter(table.facts[dataset]["metrics"].items())), table.of(dataset)
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method]
            held = budget is not None and all(row["budgeted"] and equal_bits(row["bits"], budget, tolerance)
                                              for row in mine)
            row = {"dataset": dataset, "method": method, "bits": sum(row["bits"] for row in mine) / len(mine),
                   "seeds": len({row["seed"] for row in mine}), "documents": max(row["n"] for row in mine),
                   "metric": metric, "label": label, "equal_bits": held, "mark": mine[0]["best_loglik"]}
            for name, source in (("main", stem(metric)), ("d_loglik", "d_loglik")):
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), over_seeds(mine, source)))
            means.append(row | {"loglik": over_seeds(mine, "loglik")[0]})
    return pd.DataFrame(means).astype(dict.fromkeys(NUMBERS, float)) if means else pd.DataFrame()


def shown(frame: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Points as a table for people, with columns ``more``; where the metric is not accuracy each row names it."""
    metrics = set(frame["metric"])
    name = "accuracy" if metrics == {"accuracy"} else "score"
    front = ["dataset", "method", "bits", "seeds", "documents", *([] if name == "accuracy" else ["metric"])]
    return frame[[*front, *NUMBERS, *more]].rename(columns=lambda column: column.replace("main", name))


def curve(part: Part) -> pd.DataFrame:
    """The points of every budget, and which of them lie on the front or reach it with their interval.

    On the front: no row of equal or fewer bits has a higher value.  Bits within the grid's tolerance count as equal.
    """
    frames = [frame for table in part.tables if len(frame := points(table, part.tolerance))]
    if not frames:
        return pd.DataFrame()
    frame = pd.concat(frames).drop_duplicates(["dataset", "method", "bits"]).reset_index(drop=True)
    for name in ("main", "d_loglik"):
        fronts = pd.Series("", index=frame.index)
        for _, rows in frame[(frame["method"] != "fp16") & frame[name].notna()].groupby("dataset"):
            for at, bits, value, high in zip(rows.index, rows["bits"], rows[name], rows[f"{name}_high"]):
                best = rows.loc[rows["bits"] <= bits + part.tolerance + 1e-9, name].max()
                fronts[at] = "front" if value >= best else "reaches it" if high >= best else ""
        frame[f"{name}_front"] = fronts
    return frame


def of_first_seed(cells: Sequence[Result], budget: float | None) -> list[Result]:
    """The cells of a budget and those without one, of each method's lowest seed."""
    first: dict[tuple, Result] = {}
    for cell in sorted(cells, key=lambda c: (c.seed, c.cell)):
        if cell.avg_bits in (budget, None):
            first.setdefault((cell.dataset, cell.name), cell)
    return list(first.values())


def layers(cell: Result) -> pd.DataFrame:
    """Block, kind, bits and share of sampled weights kept, one row a kind of linear in a block: means over its linears
    (experts)."""
    groups: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for fqn, bits in cell.bits.per_linear.items():
        kept = cell.probe.get(fqn, {}).get("kept")
        groups.setdefault(place(fqn), []).append((bits, sum(kept) / len(kept) if kept else 0.0))
    rows = [(block, kind, sum(b for b, _ in of) / len(of), sum(k for _, k in of) / len(of))
            for (block, kind), of in groups.items()]
    return pd.DataFrame(rows, columns=["block", "kind", "bits", "kept"])


@cache
def place(fqn: str) -> tuple[int, str]:
    """Block number and kind of a linear, of its dotted name; numbers after the block's (experts) are dropped."""
    names = fqn.split(".")
    at = next((i for i, name in enumerate(names) if re.fullmatch(r"\d{1,9}", name)), None)
    if at is None:
        return 0, plain(fqn)
    return int(names[at]), plain(".".join(name for name in names[at + 1:] if not name.isdigit()))


def strata(cells: Sequence[Result]) -> pd.DataFrame:
    """Accuracy with its Wilson interval, one row a cell and category, or group of them where the data set has groups;
    nothing where it has no categories.
    """
    return pd.DataFrame([
        {"dataset": c.dataset, "method": c.name, "seed": c.seed, "category": name or "(none)", "n": of.n,
         "accuracy": of.accuracy.value, "low": of.accuracy.low, "high": of.accuracy.high}
        for c in cells for name, of in (groups_of(c) or c.strata).items() if len(c.strata) > 1 and of.accuracy])


def seconds(part: Part) -> pd.DataFrame:
    """Seconds of each stage, one row a data set, method, budget and stage: the mean over the seeds."""
    rows = [{"dataset": c.dataset, "method": c.name, "budget": c.avg_bits, "stage": stage, "seed": c.seed,
             "seconds": value} for c in part.cells for stage, value in c.seconds.items()]
    if not rows:
        return pd.DataFrame()
    keys = ["dataset", "method", "budget", "stage"]
    groups = pd.DataFrame(rows).groupby(keys, sort=False, dropna=False)
    return groups.agg(seconds=("seconds", "mean"), seeds=("seed", "nunique")).reset_index()


def tidy(parts: list[Part]) -> pd.DataFrame:
    """All rows of all tables in one frame, with the table each stands in."""
    frames = [t.frame.assign(table=t.title, part=p.title) for p in parts for t in p.tables if t.rows]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
