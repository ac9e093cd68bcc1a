"""Maps: where each method spends its bits, and how far methods agree."""

import numpy as np
import pandas as pd
from matplotlib import colormaps

from report.figures.agreement import KINDS, LEAST, agreement, matrix
from report.figures.frames import Part, layers, of_first_seed, plain
from report.figures.style import GREY, Figure, canvas, svg

PANEL = (2.6, 0.84)  # inches of a map of bits


def bit_figure(part: Part, budget: float | None, number: int) -> Figure:
    """Where the bits of a budget's rows are, or those of rows that have none."""
    title = "Where does each method spend its bits" + (f" at {budget:g} bits a weight?" if budget is not None else "?")
    how = ("A row of a map is a kind of linear, a column a decoder block, the first at the left; brighter is more bits of the plan's base level. "
           "Where all linears have one base level and single weights are kept at 16 bits, the map shows instead which share of the linear's sampled "
           "weights was kept: the sample is coarse, so at shares below 2 % most linears show none. Each method's lowest seed.")
    cells = [c for c in of_first_seed(part.cells, budget) if c["bits"].get("per_linear")]
    cells.sort(key=lambda c: (part.methods.index(c["method"]["name"]), part.datasets.index(c["dataset"])))
    maps = {(c["method"]["name"], c["dataset"]): layers(c) for c in cells}
    flat = {k: m for k, m in maps.items() if m["bits"].nunique() == 1 and not m["kept"].any()}
    maps = {k: m for k, m in maps.items() if k not in flat}
    even = "".join(f" {plain(m)} on {plain(d)}: every linear has {f['bits'].iloc[0]:g} bits, so no map." for (m, d), f in flat.items())
    if not maps:
        return Figure(f"map-{number}", title, how, (), lack=f"no data: no row with bits that differ between linears.{even}")
    numbers = tuple((f"{m} on {d}: {_shown(f)[1]}", _table(f)) for (m, d), f in maps.items())
    return Figure(f"map-{number}", title, how + even, numbers, svg(_draw(part, maps), f"{part.key}-map-{number}", title))


def _shown(frame: pd.DataFrame) -> tuple[str, str]:
    """Which column a map shows, and its name."""
    return ("kept", "share of sampled weights kept") if frame["bits"].nunique() == 1 else ("bits", "bits")


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    out = frame.pivot(index="kind", columns="block", values=_shown(frame)[0]).reindex(list(dict.fromkeys(frame["kind"])))
    return out.reset_index().rename_axis(columns=None)


def _draw(part: Part, maps: dict):
    """Small panels: a row a method, a column a data set, one scale for all bits and one for all shares."""
    methods = [m for m in part.methods if any(k[0] == m for k in maps)]
    names = [d for d in part.datasets if any(k[1] == d for k in maps)]
    wide, high = 2.1 + PANEL[0] * len(names), 1.3 + PANEL[1] * len(methods)
    drawn = canvas(wide, high)
    grid = drawn.subplots(len(methods), len(names), squeeze=False)
    drawn.subplots_adjust(left=1.8 / wide, right=1 - 0.1 / wide, top=1 - 0.35 / high, bottom=0.95 / high, wspace=0.06, hspace=0.28)
    levels = sorted({b for f in maps.values() if _shown(f)[0] == "bits" for b in f["bits"]})
    most, images = max([f["kept"].max() for f in maps.values() if _shown(f)[0] == "kept"], default=0), {}
    for i, method in enumerate(methods):
        for j, dataset in enumerate(names):
            frame = maps.get((method, dataset))
            if frame is not None:
                images[_shown(frame)[0]] = _panel(grid[i, j], frame, levels, most)
            _dress(grid[i, j], plain(method) if j == 0 else "", plain(dataset) if i == 0 else "", frame, i == len(methods) - 1)
    for i, (kind, image) in enumerate(sorted(images.items())):
        bar = drawn.add_axes([(1.8 + i * 3.0) / wide, 0.42 / high, 2.4 / wide, 0.12 / high])
        drawn.colorbar(image, cax=bar, orientation="horizontal").set_label("bits" if kind == "bits" else "share of sampled weights kept")
        if kind == "bits":
            shown = range(0, len(levels), 1 + len(levels) // 9)
            bar.set_xticks(list(shown), [f"{levels[k]:g}" for k in shown])
    return drawn


def _panel(ax, frame: pd.DataFrame, levels: list[float], most: float):
    """One map: bits by the rank of their level, so that a rare high level does not darken all others; shares as they are."""
    values = _table(frame).set_index("kind")
    extent = (values.columns.min() - 0.5, values.columns.max() + 0.5, len(values) - 0.5, -0.5)
    if _shown(frame)[0] == "kept":
        return ax.imshow(values.to_numpy(dtype=float), cmap="Greys", vmin=0, vmax=most, aspect="auto", interpolation="none", extent=extent)
    rank = values.map(levels.index, na_action="ignore").to_numpy(dtype=float)
    return ax.imshow(rank, cmap=colormaps["cividis"].resampled(len(levels)), vmin=-0.5, vmax=len(levels) - 0.5, aspect="auto", interpolation="none",
                     extent=extent)


def _dress(ax, method: str, dataset: str, frame: pd.DataFrame | None, last: bool) -> None:
    """Labels at the left and at the bottom only; a panel without data says so."""
    ax.set_title(dataset)
    kinds = [] if frame is None else list(dict.fromkeys(frame["kind"]))
    ax.set_yticks(range(len(kinds)), [k.rpartition(".")[2] for k in kinds] if method else [""] * len(kinds), fontsize=5.6)
    ax.tick_params(axis="both", length=1.5, pad=1.5, labelbottom=last and frame is not None)
    ax.set_ylabel(method, rotation=0, ha="right", va="center", labelpad=6)
    ax.set_xlabel("decoder block" if last else "")
    if frame is None:
        _nothing(ax)


def _nothing(ax) -> None:
    """A panel that has nothing to show says so."""
    ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color=GREY)
    ax.set_xticks([])


def agreement_figure(part: Part, budget: float | None, number: int) -> Figure:
    """How far the methods of a budget agree, by kind of agreement and data set."""
    title = "Do the methods look at the same weights" + (f" at {budget:g} bits?" if budget is not None else "?")
    how = ("1: the same order, 0: unrelated, below 0: the reverse. First row: which linears score high, by Spearman's rank correlation of their mean "
           "sampled scores. Where methods score single weights, second: which weights inside a linear; third: Jaccard overlap of the kept weights, "
           f"among the sampled ones; empty where fewer than {LEAST} were kept. The numbers hold how much each rests on, and the overlap by chance. "
           "Each method's lowest seed; a method with one score for all linears is left out.")
    pairs = {d: agreement(part.cells, budget, d, part.methods) for d in part.datasets}
    pairs = {d: p for d, p in pairs.items() if len(p)}
    if not pairs:
        return Figure(f"agree-{number}", title, how, (), lack="no data: no data set has two methods with scores that differ between linears")
    numbers = tuple((d, p.drop(columns="dataset")) for d, p in pairs.items())
    return Figure(f"agree-{number}", title, how, numbers, svg(_matrices(pairs), f"{part.key}-agree-{number}", title))


def _matrices(pairs: dict[str, pd.DataFrame]):
    """A row a kind of agreement, a column a data set."""
    shown = [k for k in KINDS if any(p[k].notna().any() for p in pairs.values())]
    most = max(len(set(p["a"]) | set(p["b"])) for p in pairs.values())
    side = max(2.3, 0.27 * most + 0.9)
    drawn = canvas(side * len(pairs) + 0.2, side * len(shown) + 0.2, layout="constrained")
    grid = drawn.subplots(len(shown), len(pairs), squeeze=False)
    for row, kind in zip(grid, shown):
        for ax, (dataset, found) in zip(row, pairs.items()):
            _matrix(ax, matrix(found, kind))
            ax.set_title(plain(dataset))
        row[0].set_ylabel(KINDS[kind], fontsize=9)
    return drawn


def _matrix(ax, frame: pd.DataFrame) -> None:
    """One matrix with its numbers in the squares."""
    if not len(frame):
        _nothing(ax)
        ax.set_yticks([])
        return
    ax.imshow(frame.to_numpy(), cmap="PuOr", vmin=-1, vmax=1, interpolation="none")
    names = [plain(n) for n in frame.index]
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for (i, j), value in np.ndenumerate(frame.to_numpy()):
        if np.isfinite(value):
            shown = f"{value:.2f}".replace("0.", ".").replace("-.00", ".00") if abs(value) < 0.995 else f"{value:.0f}"
            ax.text(j, i, shown, ha="center", va="center", fontsize=5.5, color="white" if abs(value) > 0.7 else "black").set_in_layout(False)
