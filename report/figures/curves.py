"""The report's figures: what is kept at which stored bits, method against method at equal bits, and the rest of them in order.

    python -m report.figures.curves results docs/figures/demo.svg

draws the comparison at equal bits of the newest table of a folder alone, for a page or a paper.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from core.errors import UserError
from report.figures.bars import category_figures, time_figure
from report.figures.frames import SAME_BITS, Part, budgets, curve, load, plain, points, whole
from report.figures.maps import agreement_figure, bit_figure
from report.figures.style import GREY, RC, Figure, Look, canvas, looks, save, svg
from report.tables.tables import TableData

MEASURES = {"accuracy": "accuracy (%)", "d_loglik": "change of the gold answer's log-\nlikelihood against fp16 (nats/token)"}
NUMBERS = ["dataset", "method", "bits", "seeds", "documents", "accuracy", "accuracy_low", "accuracy_high", "loglik", "d_loglik", "d_loglik_low",
           "d_loglik_high"]
ALONE = "dashed: full precision (fp16); whiskers: 95 % intervals over the documents"
SPREAD = 0.02  # of the axis: how far apart rows of equal bits are drawn
WHISKERS = "Whiskers: 95 % intervals over the documents (Wilson; paired bootstrap); of several seeds, their mean and the span of their intervals."


def figures(part: Part) -> list[Figure]:
    """Every figure of a part, in the order of the page."""
    with matplotlib.rc_context(RC):
        return [curve_figure(part), *(forest_figure(part, t, i) for i, t in enumerate(part.tables)),
                *(draw(part, b, i) for draw in (bit_figure, agreement_figure) for i, b in enumerate(budgets(part))),
                *category_figures(part), time_figure(part)]


def scaled(frame: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and (low, high) lengths of their whiskers, in the units of the axis."""
    by = 100 if name == "accuracy" else 1
    value, low, high = (by * frame[n].to_numpy(dtype=float) for n in (name, f"{name}_low", f"{name}_high"))
    return value, np.clip(np.array([value - low, high - value]), 0, None)


def curve_figure(part: Part) -> Figure:
    """Value against true stored bits, a column a data set."""
    title = "What does a stored bit buy?"
    how = ("Right is more storage, up is better. Dashed: full precision (fp16). The stepped line is the Pareto front: no row with equal or fewer "
           f"bits lies above it; 'reaches it' in the numbers marks a row whose interval does. Black squares: uniform bits, grey diamonds: random "
           f"scores. Rows of equal bits are drawn side by side around them; the numbers hold the true bits. {WHISKERS}")
    frame = curve(part)
    if not len(frame) or not (frame["method"] != "fp16").any():
        return Figure("bits", title, how, (), lack="no data: no finished row of a quantized model")
    look, names = looks(part.methods), [d for d in part.datasets if (frame["dataset"] == d).any()]
    drawn = canvas(0.6 + 3.4 * len(names), 6.6, layout="constrained")
    axes = drawn.subplots(2, len(names), squeeze=False, sharex=True)
    for row, measure in zip(axes, MEASURES):
        for ax, dataset in zip(row, names):
            _curve(ax, frame[frame["dataset"] == dataset], measure, look)
            ax.set_title(plain(dataset) if measure == "accuracy" else "")
        row[0].set_ylabel(MEASURES[measure])
    for ax in axes[1]:
        ax.set_xlabel("stored bits a weight, metadata included")
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels())}
    order = [plain(m) for m in part.methods if plain(m) in handles] + [h for h in handles if h == "Pareto front"]
    drawn.legend([handles[m] for m in order], order, loc="outside lower center", ncols=min(8, len(order)), frameon=False)
    columns = [*NUMBERS, "accuracy_front", "d_loglik_front"]
    return Figure("bits", title, how, (("One row a data set, method and budget", frame[columns]),), svg(drawn, f"{part.key}-bits", title))


def _curve(ax, frame: pd.DataFrame, measure: str, look: dict[str, Look]) -> None:
    """One panel: fp16 as a line, whiskers, the front."""
    full, rows = frame[frame["method"] == "fp16"], frame[(frame["method"] != "fp16") & frame[measure].notna()].sort_values("bits", kind="stable")
    level = 0.0 if measure == "d_loglik" else 100 * full["accuracy"].iloc[0] if len(full) else np.nan
    ax.axhline(level, color="black", linestyle="--", linewidth=1, label="fp16")
    if not len(rows):
        return
    at, start = beside(rows["bits"].to_numpy())
    value, whisker = scaled(rows, measure)
    for x, y, low_high, method in zip(at, value, whisker.T, rows["method"]):
        mine = look[method]
        ax.errorbar([x], [y], low_high[:, None], fmt=mine.marker, color=mine.color, markeredgecolor="black", markeredgewidth=0.6,
                    ecolor=GREY, elinewidth=0.9, label=plain(method))
    front, edge = (rows[f"{measure}_front"] == "front").to_numpy(), ax.get_xlim()
    ax.step([*start[front], edge[1]], [*value[front], value[front][-1]], where="post", color="black", linewidth=0.9, zorder=0, label="Pareto front")
    ax.set_xlim(*edge)
    if start[0] == start[-1]:
        ax.set_xticks([rows["bits"].mean()], [f"{rows['bits'].mean():.3f}"])


def beside(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rows are drawn, given their bits in rising order, and the left end of each one's run: rows of equal bits stand side by side."""
    run = np.cumsum(np.diff(bits, prepend=bits[0]) > SAME_BITS)
    step = SPREAD * max(np.ptp(bits), 0.1)
    at = bits + step * np.concatenate([np.arange(n) - (n - 1) / 2 for n in np.bincount(run)])
    return at, np.array([at[run == r].min() for r in run])


def forest(part: Part, table: TableData, heading: str = "") -> object:
    """Method by method at one budget: rows are methods, columns data sets."""
    frame = points(table)
    look = looks(part.methods)
    names, methods = list(dict.fromkeys(frame["dataset"])), list(dict.fromkeys(frame["method"]))
    drawn = canvas(1.4 + 2.6 * len(names), 1.3 + 0.36 * len(methods) + (0.45 if heading else 0), layout="constrained")
    axes = drawn.subplots(2, len(names), squeeze=False, sharey=True)
    for row, measure in zip(axes, MEASURES):
        for ax, dataset in zip(row, names):
            _forest(ax, frame[frame["dataset"] == dataset], measure, methods, look)
            ax.set_title(plain(dataset) if measure == "accuracy" else "")
            ax.set_xlabel(MEASURES[measure])
        row[0].set_yticks(range(len(methods)), [plain(m) for m in methods])
        row[0].set_ylim(len(methods) - 0.5, -0.5)
    if heading:
        drawn.suptitle(heading, fontsize=9)
    return drawn


def _forest(ax, frame: pd.DataFrame, measure: str, methods: list[str], look: dict[str, Look]) -> None:
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.tick_params(axis="y", length=0)
    full = frame[frame["method"] == "fp16"]
    if len(full):
        ax.axvline(0 if measure == "d_loglik" else 100 * full["accuracy"].iloc[0], color="black", linestyle="--", linewidth=1)
    rows = frame[frame[measure].notna()]
    value, whisker = scaled(rows, measure)
    for x, low_high, method, own in zip(value, whisker.T, rows["method"], ~rows["budgeted"]):
        mine = look[method]
        ax.errorbar([x], [methods.index(method)], xerr=low_high[:, None], fmt=mine.marker, color="white" if own else mine.color,
                    markeredgecolor="black", markeredgewidth=0.8, ecolor=GREY, elinewidth=1)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def forest_figure(part: Part, table: TableData, number: int) -> Figure:
    """The comparison of one table."""
    title = f"Which method keeps the most{_budget(table)}?"
    how = (f"Right is better. Dashed: full precision. Filled markers stand at equal stored bits; hollow ones (fp16, native forms) have bits of their "
           f"own, so they are no rivals at this budget. {WHISKERS}")
    frame = points(table)
    if not len(frame):
        return Figure(f"rows-{number}", title, how, (), lack="no data: no finished cell in this table")
    return Figure(f"rows-{number}", title, how, (("One row a data set and method", frame[NUMBERS]),),
                  svg(forest(part, table), f"{part.key}-rows-{number}", title))


def _budget(table: TableData) -> str:
    return f", with {table.title.rpartition(', ')[2]}" if "stored bits a weight" in table.title else ""


def main(argv: list[str]) -> int:
    """Draw the newest table of a results folder into one SVG file."""
    if len(argv) != 2:
        print("use: python -m report.figures.curves RESULTS_FOLDER OUT.svg", file=sys.stderr)
        return 2
    try:
        found = [(p, t) for p in load(argv[0]) for t in p.tables if len(t.frame)]
        if not found:
            raise UserError(f"no data: {argv[0]!r} holds no finished results; run run_taq_icml.py first")
        part, table = found[0]
        with matplotlib.rc_context(RC):
            save(Path(argv[1]), svg(forest(part, table, f"{whole(table.title)}\n{ALONE}"), "alone", table.title) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
