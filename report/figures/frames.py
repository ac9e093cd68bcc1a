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
from report.tables.comparison import equal_bits
from report.tables.tables import TableData, comparable, group

LONGEST = 32  # letters of a name in a figure
FEWEST = 10  # documents of a category that is shown
INTERVALS = ("accuracy", "d_loglik")


@dataclass(frozen=True)
class Part:
    """One model under one set of settings: its tables and its finished cells."""

    key: str  # its place on the page
    title: str
    tables: tuple[TableData, ...]
    cells: tuple[Result, ...]  # of the newest documents asked
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
    known = [_told(members) for members in groups]
    names = sorted({name for of in known for name in of})
    differing = tuple(name for name in names if len({str(of.get(name)) for of in known}) > 1)
    return [_part(f"part-{i}", members, differing) for i, members in enumerate(groups, 1)]


def _told(members: list[Result]) -> dict:
    """What is told of a part besides its model: settings and machine."""
    return members[0].settings | {"machine": members[0].machine}


def _part(key: str, members: list[Result], differing: tuple[str, ...]) -> Part:
    head, tables = members[0], tuple(group(members))
    frames = [t.frame for t in tables if len(t.frame)]
    rows = pd.concat(frames) if frames else pd.DataFrame({"method": [], "dataset": []})
    finished = [c for c in members if c.ok]
    newest = {c.dataset: c.asked for c in sorted(finished, key=lambda c: c.age)}
    told = _told(members)
    title = (f"{head.model.name} ({head.model.dtype}), {head.run_type} run, {head.settings.get('data_source')} data"
             + "".join(f", {name} {told[name]}" for name in differing if name in told and name != "data_source"))
    methods = sorted(dict.fromkeys(rows["method"]), key=lambda m: CONTROLS.index(m) if m in CONTROLS else len(CONTROLS))
    return Part(
        key=key, title=title, tables=tables, cells=tuple(c for c in finished if c.asked == newest[c.dataset]),
        methods=tuple(methods), datasets=tuple(dict.fromkeys(rows["dataset"])), tolerance=head.tolerance,
        members=tuple(members), differing=differing)


def budgets(part: Part) -> list[float | None]:
    """The budgets that the part's cells were held to, the smallest first; None alone where no cell has one."""
    return sorted({c.avg_bits for c in part.cells if c.avg_bits is not None}) or [None]


def points(table: TableData, tolerance: float) -> pd.DataFrame:
    """One row a data set and method of a table: means over the seeds, and the span of the seeds' intervals."""
    budget, rows = table.about["avg_bits"], []
    for (dataset, method), cells in table.frame.groupby(["dataset", "method"], sort=False) if len(table.frame) else ():
        held = bool(cells["budgeted"].all()) and budget is not None
        row = {"dataset": dataset, "method": method, "bits": cells["bits"].mean(), "seeds": cells["seed"].nunique(),
               "documents": cells["n"].max(), "mark": cells["best_loglik"].iloc[0],
               "equal_bits": held and all(equal_bits(bits, budget, tolerance) for bits in cells["bits"])}
        for name in INTERVALS:
            row |= {name: cells[name].mean(), f"{name}_low": cells[f"{name}_low"].min(),
                    f"{name}_high": cells[f"{name}_high"].max()}
        rows.append(row | {"loglik": cells["loglik"].mean()})
    return pd.DataFrame(rows)


def curve(part: Part) -> pd.DataFrame:
    """The points of every budget, and which of them lie on the front or reach it with their interval.

    On the front: no row of equal or fewer bits has a higher value.  Bits within the grid's tolerance count as equal.
    """
    frames = [frame for table in part.tables if len(frame := points(table, part.tolerance))]
    if not frames:
        return pd.DataFrame()
    frame = pd.concat(frames).drop_duplicates(["dataset", "method", "bits"]).reset_index(drop=True)
    for name in INTERVALS:
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
    at = next((i for i, name in enumerate(names) if re.fullmatch(r"\d+", name)), None)
    if at is None:
        return 0, plain(fqn)
    return int(names[at]), plain(".".join(name for name in names[at + 1:] if not name.isdigit()))


def strata(cells: Sequence[Result]) -> pd.DataFrame:
    """Accuracy with its Wilson interval, one row a cell and category; nothing where the data has no categories."""
    return pd.DataFrame([
        {"dataset": c.dataset, "method": c.name, "seed": c.seed, "category": name or "(none)", "n": of.n,
         "accuracy": of.accuracy.value, "low": of.accuracy.low, "high": of.accuracy.high}
        for c in cells for name, of in c.strata.items() if len(c.strata) > 1 and of.accuracy])


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
    frames = [t.frame.assign(table=t.title, part=p.title) for p in parts for t in p.tables if len(t.frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
