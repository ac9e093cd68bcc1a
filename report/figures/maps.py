"""Maps: where each method spends its bits."""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from report.figures.frames import Part, layers, of_first_seed, plain
from report.figures.style import Figure, blend, chunks, legend, panels, swatch
from report.figures.svg import SMALL, Drawing, num, text_width

WIDTH, ROW = 360.0, 10.0
TALLEST = 12  # maps of a panel
SHADES = 12  # steps of the scale of shares
NAMES = {"bits": "bits", "kept": "share of sampled weights kept"}


@dataclass(frozen=True)
class Map:
    """One method's map of one data set."""

    shown: str  # of NAMES
    table: pd.DataFrame  # a row a kind of linear, a column a block

    @property
    def texts(self) -> list[str]:
        """Each row as text: its values from block to block, equal neighbours as one range."""
        return [_ranges(line, self.table.columns.tolist()) for line in self.table.to_numpy(dtype=float)]


@dataclass(frozen=True)
class Paint:
    """One scale of bits and one of shares for all maps of a figure."""

    levels: tuple[float, ...]  # of bits, in rising order
    most: float  # the largest share of kept weights

    def ranks(self, one: Map, values: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Level numbers of a map's values, -1 for none, and the attributes of each level's fill.

        Bits by the rank of their level, so that a rare high level does not darken all others; shares as they are.
        """
        empty = ~np.isfinite(values)
        if one.shown == "kept":
            ranks = np.ceil(np.where(empty, 0, values) / self.most * SHADES)
            return np.where(empty, -1, ranks).astype(int), [_shade(i / SHADES) for i in range(SHADES + 1)]
        ranks = np.searchsorted(self.levels, np.where(empty, self.levels[0], values))
        return np.where(empty, -1, ranks).astype(int), self.bits

    @property
    def bits(self) -> list[str]:
        return [f'fill="{blend(i / max(1, len(self.levels) - 1))}"' for i in range(len(self.levels))]

    def legend(self) -> str:
        """Both scales, as a list that wraps."""
        items = [(paint, f"{level:.4g} bits") for paint, level in zip(self.bits, self.levels)]
        if len(items) > 9:
            items = [items[round(i * (len(items) - 1) / 8)] for i in range(9)]
        if self.most:
            items += [(_shade(share), f"{share * self.most:.2g} kept") for share in (0.0, 0.5, 1.0)]
        return legend([(swatch(paint), words) for paint, words in items])


def _shade(share: float) -> str:
    return f'fill="currentColor" fill-opacity="{share:.2f}"'


def _ranges(values: np.ndarray, blocks: list[int]) -> str:
    known = [(block, value) for block, value in zip(blocks, values.tolist()) if value == value]
    groups = [(value, [block for block, _ in of]) for value, of in groupby(known, key=lambda pair: pair[1])]
    return "; ".join(f"{of[0]}{f'–{of[-1]}' if len(of) > 1 else ''}: {value:.3g}" for value, of in groups)


def bit_figure(part: Part, budget: float | None, number: int) -> Figure:
    """Where the bits of a budget's rows are, or those of rows that have none."""
    title = "Where does each method spend its bits" + (f" at {budget:g} bits a weight?" if budget is not None else "?")
    how = ("A row of a map is a kind of linear, a column a decoder block, the first at the left. Yellow is the "
           "highest base level of the plans, dark blue the lowest. Where all linears have one base level and single "
           "weights are kept at 16 bits, the map shows instead which share of the linear's sampled weights was kept: "
           "the sample is coarse, so at shares below 2 % most linears show none. Each method's lowest seed.")
    cells = [c for c in of_first_seed(part.cells, budget) if c.bits.per_linear]
    cells.sort(key=lambda c: (part.methods.index(c.name), part.datasets.index(c.dataset)))
    frames = {(c.name, c.dataset): layers(c) for c in cells}
    flat = {key: f["bits"].iloc[0] for key, f in frames.items() if f["bits"].nunique() == 1 and not f["kept"].any()}
    maps = {key: _map(f) for key, f in frames.items() if key not in flat}
    note = _even(flat, part.datasets)
    if not maps:
        lack = f"no data: no row with bits that differ between linears. {note}"
        return Figure(key=f"map-{number}", title=title, how=how, lack=lack)
    paint = Paint(tuple(sorted({b for key, one in maps.items() if one.shown == "bits" for b in frames[key]["bits"]})),
                  max((frames[key]["kept"].max() for key, one in maps.items() if one.shown == "kept"), default=0.0))
    drawings = []
    for dataset in dict.fromkeys(d for d in part.datasets if any(of == d for _, of in maps)):
        methods = [(name, one) for (name, of), one in maps.items() if of == dataset]
        drawings += [_panel(dict(some), plain(dataset), title, paint) for some in chunks(methods, TALLEST)]
    return Figure(key=f"map-{number}", title=title, how=how, note=note, svg=panels(drawings, paint.legend()),
                  numbers=(("One row a map's row; equal neighbours together", _numbers(maps)),))


def _map(frame: pd.DataFrame) -> Map:
    """Bits, or the share of kept weights where all linears have the same bits."""
    shown = "kept" if frame["bits"].nunique() == 1 else "bits"
    table = frame.pivot(index="kind", columns="block", values=shown)
    return Map(shown, table.reindex(list(dict.fromkeys(frame["kind"]))))


def _even(flat: dict[tuple[str, str], float], datasets: tuple[str, ...]) -> str:
    """Which methods have no map, because all their linears have the same bits."""
    texts: dict[str, list[str]] = {}
    for (method, dataset), bits in flat.items():
        texts.setdefault(f"{plain(method)} ({bits:g})", []).append(plain(dataset))
    names = [name + ("" if len(of) == len(datasets) else f" on {', '.join(of)}") for name, of in texts.items()]
    return f"Every linear has the same bits, so there is no map: {', '.join(names)}." if names else ""


def _numbers(maps: dict[tuple[str, str], Map]) -> pd.DataFrame:
    """The maps as text."""
    return pd.DataFrame([
        {"dataset": dataset, "method": method, "kind": kind, "shown": NAMES[one.shown], "block: value": text}
        for (method, dataset), one in maps.items() for kind, text in zip(one.table.index, one.texts)])


def _panel(maps: dict[str, Map], dataset: str, title: str, paint: Paint) -> Drawing:
    """The maps of one data set, a method below another, over one axis of blocks."""
    drawing, tables = Drawing(WIDTH, f"{title} {dataset}"), [one.table for one in maps.values()]
    names = _short({kind for table in tables for kind in table.index})
    left = min(130.0, max(text_width(name, SMALL) for name in names.values()) + 8)
    blocks = sorted({block for table in tables for block in table.columns})
    wide = (WIDTH - left - 8) / len(blocks)
    drawing.text(left, 13, dataset, "b", room=WIDTH - left)
    y = 20.0
    for method, one in maps.items():
        table = one.table.reindex(columns=blocks)
        drawing.text(left, y + 11, plain(method), room=WIDTH - left)
        y += 16
        for i, kind in enumerate(table.index):
            drawing.text(left - 5, y + ROW * i + 8.5, names[kind], "s e", room=left - 6)
        levels, paints = paint.ranks(one, table.to_numpy(dtype=float))
        drawing.squares(levels, paints, (left, y), (wide, ROW))
        height = ROW * len(table)
        drawing.path(f"M{num(left)} {num(y)}h{num(wide * table.shape[1])}v{num(height)}H{num(left)}z", "frame")
        y += height + 6
    step = next(s for s in (1, 2, 5, 10, 20, 50, len(blocks)) if len(blocks) / s <= 8)
    for i in range(0, len(blocks), step):
        drawing.text(left + (i + 0.5) * wide, y + 8, str(blocks[i]), "s m", room=WIDTH / 8)
    drawing.text((left + WIDTH - 8) / 2, y + 21, "decoder block", "s m")
    drawing.height = y + 27
    return drawing


def _short(kinds: set[str]) -> dict[str, str]:
    """The last parts of the kinds' names, or the whole ones where those would be alike."""
    names = {kind: kind.rpartition(".")[2] for kind in kinds}
    return names if len(set(names.values())) == len(kinds) else {kind: kind for kind in kinds}
