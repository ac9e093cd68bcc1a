"""Bars: accuracy by category, and where the time went."""

import numpy as np
import pandas as pd

from report.figures.frames import Part, budgets, of_first_seed, plain, seconds, strata
from report.figures.style import OKABE_ITO, Figure, canvas, looks, svg

PER_ROW = 6  # panels of methods side by side
PALE = {"fp16": "#FFFFFF", "uniform": "#BDBDBD", "random": "#D9D9D9"}  # whiskers must show on a bar
STAGES = {"scores": ("#0072B2", ""), "weights": ("#E69F00", "//"), "samples": ("#FFFFFF", "")}


def category_figures(part: Part) -> list[Figure]:
    """One figure a budget and data set that has categories; one that says so where none has."""
    out = []
    for i, budget in enumerate(budgets(part)):
        frame = strata(of_first_seed(part.cells, budget))
        out += [_categories(part, frame[frame["dataset"] == d], d, budget, f"kinds-{i}-{j}") for j, d in enumerate(part.datasets)
                if len(frame) and (frame["dataset"] == d).any()]
    lack = "no data: no data set of these results has categories"
    return out or [Figure("kinds", "Which kinds of questions are lost?", "Accuracy by category.", (), lack=lack)]


def _categories(part: Part, frame: pd.DataFrame, dataset: str, budget: float | None, key: str) -> Figure:
    at = f" at {budget:g} bits a weight" if budget is not None else ""
    title = f"Which kinds of {dataset} questions are lost{at}?"
    how = ("A panel a method, a bar a category; n: its documents. Whiskers: 95 % Wilson intervals, which are wide for few documents. The tick on "
           "each bar's line is full precision's accuracy there. Each method's lowest seed.")
    numbers = frame.drop(columns="dataset")[["method", "seed", "category", "n", "accuracy", "low", "high"]]
    return Figure(key, title, how, (("One row a method and category", numbers),), svg(_panels(part, frame), f"{part.key}-{key}", title))


def _panels(part: Part, frame: pd.DataFrame):
    """Horizontal bars, the methods' panels side by side over one list of categories."""
    methods = [m for m in part.methods if (frame["method"] == m).any()]
    sizes = frame.groupby("category")["n"].max()
    look, columns = looks(part.methods), min(PER_ROW, len(methods))
    rows = -(-len(methods) // columns)
    width, height = 2.0 + 1.45 * columns, 0.35 + rows * (0.6 + 0.19 * len(sizes))
    drawn = canvas(width, height)
    grid = drawn.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    drawn.subplots_adjust(left=1.9 / width, right=1 - 0.1 / width, top=1 - 0.3 / height, bottom=0.6 / height, wspace=0.08,
                          hspace=0.6 / (0.19 * len(sizes)))
    full = frame[frame["method"] == "fp16"].set_index("category")["accuracy"].reindex(sizes.index)
    at = np.arange(len(sizes))
    for ax in grid.flat[len(methods):]:
        ax.set_axis_off()
    for ax, method in zip(grid.flat, methods):
        mine = frame[frame["method"] == method].set_index("category").reindex(sizes.index)
        value, low, high = (100 * mine[k].to_numpy(dtype=float) for k in ("accuracy", "low", "high"))
        ax.barh(at, value, 0.62, color=PALE.get(method, look[method].color), edgecolor="black", linewidth=0.5, hatch=look[method].hatch)
        ax.errorbar(value, at, xerr=np.clip([value - low, high - value], 0, None), fmt="none", ecolor="black", elinewidth=0.8)
        ax.plot(100 * full, at, "|", color="black", markersize=8, markeredgewidth=1.6)
        ax.set_title(plain(method))
        ax.set_xticks([0, 50, 100])
        ax.set_xlim(0, 114)
        ax.tick_params(labelbottom=True)
        ax.tick_params(axis="y", length=0)
    grid[0][0].set_yticks(at, [f"{plain(name)} (n={n})" for name, n in sizes.items()])
    grid[0][0].set_ylim(len(sizes) - 0.4, -0.6)
    drawn.supxlabel("accuracy (%)", fontsize=8, y=0.1 / height)
    return drawn


def time_figure(part: Part) -> Figure:
    """Seconds by stage, a bar a method and budget, a panel a data set."""
    title = "Where did the time go?"
    how = ("scores: looking at the calibration documents; weights: solving with a Hessian; samples: changing the weights, by rounding if that "
           "is all, and answering the questions. Every stage counts what making it took when it was made, also where a later run found it ready. "
           "Mean over seeds. No comparison of speed where machines or loads differ.")
    frame = seconds(part)
    if not len(frame):
        return Figure("time", title, how, (), lack="no data: the results hold no timings")
    frame["row"] = [plain(m) + ("" if pd.isna(b) else f" {b:g}") for m, b in zip(frame["method"], frame["budget"])]
    frame["place"] = [part.methods.index(m) for m in frame["method"]]
    frame = frame.sort_values(["place", "budget"], kind="stable")
    rows, names = list(dict.fromkeys(frame["row"])), [d for d in part.datasets if (frame["dataset"] == d).any()]
    drawn = canvas(1.6 + 2.9 * len(names), 1.2 + 0.19 * len(rows), layout="constrained")
    grid = drawn.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for ax, dataset in zip(grid, names):
        table = frame[frame["dataset"] == dataset].pivot_table(index="row", columns="stage", values="seconds", sort=False).reindex(rows)
        _stack(ax, table)
        ax.set_title(plain(dataset))
        ax.set_xlabel("seconds")
    grid[0].set_yticks(range(len(rows)), rows)
    grid[0].set_ylim(len(rows) - 0.4, -0.6)
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    numbers = frame.drop(columns=["row", "place"])
    return Figure("time", title, how, (("One row a data set, method, budget and stage", numbers),), svg(drawn, f"{part.key}-time", title))


def _stack(ax, table: pd.DataFrame) -> None:
    """Bars end to end, the known stages in the order of the work."""
    left = np.zeros(len(table))
    for i, stage in enumerate([*(s for s in STAGES if s in table), *(s for s in table if s not in STAGES)]):
        color, hatch = STAGES.get(stage, (OKABE_ITO[2 + i % 4], "xx"))
        width = table[stage].fillna(0).to_numpy(dtype=float)
        ax.barh(range(len(table)), width, 0.66, left=left, color=color, hatch=hatch, edgecolor="black", linewidth=0.5, label=plain(stage))
        left += width
