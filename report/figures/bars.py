"""Bars: accuracy by category, and where the time went."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from report.figures.frames import Part, budgets, of_first_seed, plain, seconds, strata, whole
from report.figures.style import (
    BOX,
    HATCHES,
    OKABE_ITO,
    PAPER,
    Figure,
    Look,
    chunks,
    hatched,
    legend,
    looks,
    panels,
    swatch,
)
from report.figures.svg import SMALL, Drawing, Scale, drawable, fitted, num, scale_of, text_width
from report.text.details import LEAST_DOCUMENTS

PALE = {"fp16": PAPER, "uniform": "var(--line)", "random": "var(--line)"}  # whiskers must show on a bar
STAGES = {"scores": ("#0072B2", ""), "weights": ("#E69F00", HATCHES[1]), "samples": (PAPER, "")}
WIDTH, ROW, BAR, TOP = 360.0, 15.0, 10.0, 20.0
NARROW, LABEL = 290.0, 138.0  # of a panel of categories
TALLEST = 50  # bars of a panel


def category_figures(part: Part) -> list[Figure]:
    """One figure a budget and data set that has categories of enough documents; one that says so where none has."""
    figures, few = [], {}
    for i, budget in enumerate(budgets(part)):
        frame = strata(of_first_seed(part.cells, budget))
        for j, dataset in enumerate(part.datasets if len(frame) else ()):
            rows = frame[frame["dataset"] == dataset]
            if (rows["n"] >= LEAST_DOCUMENTS).any():
                figures.append(_categories(part, rows, budget, f"kinds-{i}-{j}"))
            elif len(rows):
                few[dataset] = f" All categories of {plain(dataset)} have fewer than {LEAST_DOCUMENTS} documents."
    lack = "no data: no data set of these results has categories that can be shown." + "".join(few.values())
    none = Figure(key="kinds", title="Which kinds of questions are lost?", how="Accuracy by category.", lack=lack)
    return figures or [none]


def _categories(part: Part, frame: pd.DataFrame, budget: float | None, key: str) -> Figure:
    """The categories of one data set, a panel a method; those of too few documents are named, not shown."""
    at = f" at {budget:g} bits a weight" if budget is not None else ""
    title = f"Which kinds of {plain(frame['dataset'].iloc[0])} questions are lost{at}?"
    how = ("A panel a method, a bar a category, in brackets its documents. Whiskers: 95 % Wilson intervals, which "
           "are wide for few documents. The tick on each bar's line is full precision's accuracy there. Each "
           "method's lowest seed.")
    sizes = frame.groupby("category")["n"].max()
    few = [plain(name) for name in sizes.index[sizes < LEAST_DOCUMENTS]]
    note = f"{len(few)} categories under {LEAST_DOCUMENTS} documents are not shown: {', '.join(few)}." if few else ""
    sizes = sizes[sizes >= LEAST_DOCUMENTS]
    frame = frame[frame["category"].isin(sizes.index)]
    full = 100 * frame[frame["method"] == "fp16"].set_index("category")["accuracy"].reindex(sizes.index)
    drawings, look = [], looks(part.methods)
    for method in (m for m in part.methods if (frame["method"] == m).any()):
        rows = frame[frame["method"] == method].set_index("category").reindex(sizes.index)
        panel = _Bars(drawing=Drawing(NARROW, f"{title} {plain(method)}"), sizes=sizes, full=full, rows=rows)
        panel.draw(method, look[method], f"{part.key}-{key}-{len(drawings)}")
        drawings.append(panel.drawing)
    numbers = frame[["method", "seed", "category", "n", "accuracy", "low", "high"]]
    return Figure(key=key, title=title, how=how, numbers=(("One row a method and category", numbers),), note=note,
                  svg=panels(drawings))


@dataclass(frozen=True)
class _Bars:
    """One method's panel of categories."""

    drawing: Drawing
    sizes: pd.Series  # documents by category
    full: pd.Series  # full precision's accuracy by category, percent
    rows: pd.DataFrame  # the method's accuracy with its interval, by category

    def draw(self, method: str, look: Look, key: str) -> None:
        drawing, across = self.drawing, Scale(0, 100, LABEL + 6, NARROW - 16)
        bottom = TOP + ROW * len(self.sizes)
        drawing.text(4, 13, plain(method), "b", room=NARROW - 8)
        tops = {category: TOP + ROW * i + (ROW - BAR) / 2 for i, category in enumerate(self.sizes.index)}
        for category, top in tops.items():
            count = f" ({self.sizes[category]})"
            name = fitted(plain(category), LABEL - text_width(count, SMALL), SMALL)
            drawing.text(LABEL, top + 8.5, name + count, "s e")
        values = (100 * self.rows[["accuracy", "low", "high"]]).clip(0, 100)
        known = [(tops[category], *(across(v) for v in line)) for category, line in
                 zip(values.index, values.to_numpy(dtype=float).tolist()) if line[0] == line[0]]
        bars = "".join(_bar(across.start, x, top) for top, x, _, _ in known)
        drawing.path(bars, "bar", PALE.get(method, look.color))
        hatched(drawing, bars, look.hatch, key)
        whiskers = [f"M{num(low)} {num(top + BAR / 2)}H{num(high)}" for top, _, low, high in known]
        ticks = [f"M{num(across(v))} {num(tops[name] - 2)}v{num(BAR + 4)}" for name, v in self.full.items() if v == v]
        drawing.path("".join(whiskers), "axis")
        drawing.path("".join(ticks), "tick")
        drawing.bottom_axis(across, bottom, "accuracy (%)", across.ticks())
        drawing.height = bottom + 32


def _bar(start: float, end: float, top: float) -> str:
    """A bar as a path."""
    return f"M{num(start)} {num(top)}H{num(end)}v{num(BAR)}H{num(start)}z"


def time_figure(part: Part) -> Figure:
    """Seconds by stage, a bar a method and budget, a panel a data set."""
    title = "Where did the time go?"
    how = ("scores: looking at the calibration documents; weights: solving with a Hessian; samples: changing the "
           "weights, by rounding if that is all, and answering the questions. Every stage counts what making it took "
           "when it was made, also where a later run found it ready. Mean over seeds. No comparison of speed where "
           "machines or loads differ.")
    frame = seconds(part)
    if not len(frame):
        return Figure(key="time", title=title, how=how, lack="no data: the results hold no timings")
    numbers = (("One row a data set, method, budget and stage", frame),)
    rows = [whole(m) + ("" if pd.isna(b) else f" {b:g}") for m, b in zip(frame["method"], frame["budget"])]
    frame = frame.assign(row=rows, place=[part.methods.index(m) for m in frame["method"]])
    frame = frame.sort_values(["place", "budget"], kind="stable")
    known = dict.fromkeys(frame["stage"])
    stages = [*(s for s in STAGES if s in known), *(s for s in known if s not in STAGES)]
    paint = {s: STAGES.get(s, (OKABE_ITO[2 + i % 4], HATCHES[3])) for i, s in enumerate(stages)}
    drawings = []
    for dataset in (d for d in part.datasets if (frame["dataset"] == d).any()):
        rows = frame[frame["dataset"] == dataset]
        table = rows.pivot_table(index="row", columns="stage", values="seconds", sort=False).reindex(columns=stages)
        for some in chunks(table.fillna(0), TALLEST):
            drawing = Drawing(WIDTH, f"{title} {plain(dataset)}")
            _stack(drawing, some, paint, f"{part.key}-time-{len(drawings)}")
            drawing.text(4, 13, plain(dataset), "b", room=WIDTH - 8)
            drawings.append(drawing)
    return Figure(key="time", title=title, how=how, numbers=numbers, svg=panels(drawings, _stages(paint, part.key)))


def _stack(drawing: Drawing, table: pd.DataFrame, paint: dict[str, tuple[str, str]], key: str) -> None:
    """Bars end to end, the known stages in the order of the work."""
    left = min(170.0, max(text_width(row, SMALL) for row in table.index)) + 8
    ends = np.cumsum(table.to_numpy(dtype=float), axis=1)
    across, bottom = scale_of([0.0, *ends.ravel()], left, WIDTH - 12, 0.0), TOP + ROW * len(table)
    for row, name in enumerate(table.index):
        drawing.text(left - 5, TOP + ROW * row + 11, name, "s e", room=left - 6)
    for i, stage in enumerate(table.columns):
        starts = ends[:, i - 1] if i else np.zeros(len(table))
        tops = TOP + 2.5 + ROW * np.arange(len(table))
        bars = "".join(_bar(across(a), across(b), top) for a, b, top in zip(starts, ends[:, i], tops)
                       if b > a and drawable(b))
        drawing.path(bars, "bar", paint[stage][0])
        hatched(drawing, bars, paint[stage][1], f"{key}-{i}")
    drawing.bottom_axis(across, bottom, "seconds", across.ticks())
    drawing.height = bottom + 32


def _stages(paint: dict[str, tuple[str, str]], key: str) -> str:
    """The legend of stages."""
    items = []
    for i, (stage, (color, hatch)) in enumerate(paint.items()):
        box = swatch(f'fill="{color}"', "axis")
        hatched(box, BOX, hatch, f"{key}-stage-{i}")
        items.append((box, plain(stage)))
    return legend(items)
