"""Method against method at one budget, the best first: the report's answer as a drawing.

    python -m report.figures.forest results docs/figures/demo.svg

draws the comparison of the first table of a folder alone, for a page or a paper.
"""

import sys
from pathlib import Path

import pandas as pd

from core.errors import UserError
from report.figures.frames import SHARES, Part, load, plain, points, shown, whole
from report.figures.style import PAPER, Figure, Look, alone, looks, panels, save
from report.figures.svg import BOLD, Drawing, Scale, drawable, num, scale_of, text_width
from report.tables.comparison import falling
from report.tables.tables import TableData

WIDTH, SMALLER = 360.0, 290.0  # of a panel on a page, and in a file of its own
ROW, TOP, GAP = 18.0, 22.0, 14.0
LONGEST = 160.0  # pixels of a name beside its row; where one is longer, all stand above their rows
PLOTS = ("main", "d_loglik")
WHISKERS = ("Whiskers: 95 % intervals over the documents; of several seeds, the marker is their mean and the "
            "whiskers span all their intervals.")
ALONE = (
    "Right is better. Bold: keeps the most gold log-likelihood at equal bits; ~: not told apart from it. Δ gold LL:",
    "its change against full precision (dashed), nats a token. Hollow: bits of their own. Whiskers: 95 % intervals.")


def forest_figure(part: Part, table: TableData, number: int) -> Figure:
    """The comparison of one table."""
    key, budget = f"rows-{number}", table.about["avg_bits"]
    at = f", with at most {budget:g} stored bits a weight" if budget is not None else ""
    title = f"Which method keeps the most{at}?"
    how = ("Right is better, the best stands first. Bold: keeps the most gold log-likelihood at equal bits; ~: not "
           "told apart from it. Δ gold LL: its change against full precision (dashed). Hollow markers have bits of "
           f"their own, named behind them, and are no rivals at this budget. {WHISKERS}")
    frame = points(table, part.tolerance)
    if not len(frame):
        return Figure(key=key, title=title, how=how, lack="no data: no finished cell in this table")
    return Figure(key=key, title=title, how=how, numbers=(("One row a data set and method", shown(frame)),),
                  svg=panels(forest(part, table, title)))


def forest(part: Part, table: TableData, title: str, width: float = WIDTH) -> list[Drawing]:
    """One panel a data set."""
    frame, look = points(table, part.tolerance), looks(part.methods)
    room = BOLD * max(text_width(_label(row)) for row in frame.to_dict("records"))  # the best one is bold
    left = room + 12 if room <= LONGEST else 8.0
    drawings = []
    for dataset in dict.fromkeys(frame["dataset"]):
        drawings.append(Drawing(width, f"{title}: {plain(dataset)}"))
        _panel(drawings[-1], frame[frame["dataset"] == dataset], look, left)
    return drawings


def ranked(frame: pd.DataFrame) -> list[list[dict]]:
    """The rows of a data set from the best on: full precision, those at equal bits, those with bits of their own."""
    by = "d_loglik" if frame["d_loglik"].notna().any() else "loglik"
    rows = frame.sort_values(by, ascending=False, kind="stable").to_dict("records")
    full, others = ([r for r in rows if (r["method"] == "fp16") == is_full] for is_full in (True, False))
    groups = [full, *([r for r in others if r["equal_bits"] == equal] for equal in (True, False))]
    return [group for group in groups if group]


def _label(row: dict) -> str:
    """A method's name with its mark, or with its bits where they are its own."""
    if row["method"] == "fp16":
        return "fp16"
    end = {"tied": " ~"}.get(row["mark"], "") if row["equal_bits"] else f" {row['bits']:.2f}"
    return plain(row["method"]) + end


def _panel(drawing: Drawing, frame: pd.DataFrame, look: dict[str, Look], left: float) -> None:
    """One data set: accuracy and change of log-likelihood side by side over one list of methods.

    The names stand left of their rows, or above them where ``left`` has no room.
    """
    groups, above = ranked(frame), left < ROW
    half, step = (drawing.width - left - GAP - 8) / 2, ROW + 10 if above else ROW
    bottom = TOP + step * len(frame) + 6 * (len(groups) - 1)
    drawing.text(left, 13, plain(frame["dataset"].iloc[0]), "b", room=drawing.width - left)
    scales = {name: _scale(frame, name, left + i * (half + GAP), half) for i, name in enumerate(PLOTS)}
    for name, scale in scales.items():
        if drawable(level := full_precision(frame, name)):
            drawing.path(f"M{num(scale(level))} {num(TOP)}V{num(bottom)}", "dash")
        words = "Δ gold LL (nats)" if name == "d_loglik" else metric_name(frame)
        drawing.bottom_axis(scale, bottom, words, scale.ticks())
    y = TOP + step - ROW / 2
    for group in groups:
        for row in group:
            kind = ("halo" if above else "e") + (" b" if row["mark"] == "best" and row["equal_bits"] else "")
            place = (left, y - 9) if above else (left - 8, y + 4)
            drawing.text(*place, _label(row), kind, room=drawing.width - left if above else left - 10)
            for name, scale in scales.items():
                drawing.path(f"M{num(scale.start)} {num(y)}H{num(scale.end)}", "grid")
                hollow = not row["equal_bits"] and row["method"] != "fp16"
                point(drawing, row, name, scale, other=y, look=look[row["method"]], hollow=hollow)
            y += step
        y += 6
    drawing.height = bottom + 32


def _scale(frame: pd.DataFrame, name: str, left: float, width: float) -> Scale:
    values = unit(frame["metric"].iloc[0], name) * frame[[name, f"{name}_low", f"{name}_high"]].to_numpy()
    return scale_of([full_precision(frame, name), *values.ravel()], left, left + width, 0.04)


def unit(metric: str, name: str) -> float:
    """What a number is multiplied by to be drawn: shares are drawn as percent."""
    return 100.0 if name == "main" and metric in SHARES else 1.0


def metric_name(frame: pd.DataFrame) -> str:
    """The main metric of a data set's rows, as an axis names it."""
    metric, label = frame[["metric", "label"]].iloc[0]
    if metric == "accuracy":
        return "accuracy (%)"
    return plain(label) + (" (%)" if metric in SHARES else " (left is better)" if falling(metric) else "")


def full_precision(frame: pd.DataFrame, name: str) -> float | None:
    """The value of a data set's row of full precision, as it is drawn; None where it has no such row."""
    full = frame[frame["method"] == "fp16"]
    if not len(full):
        return None
    return 0.0 if name == "d_loglik" else unit(full["metric"].iloc[0], name) * full["main"].iloc[0]


def point(drawing: Drawing, row: dict, name: str, scale: Scale, *, other: float, look: Look, hollow: bool = False,
          upright: bool = False) -> None:
    """Whisker and marker of one row along ``scale``, at ``other`` on the other axis; nothing without a value."""
    value, low, high = (unit(row["metric"], name) * row[k] for k in (name, f"{name}_low", f"{name}_high"))
    if not drawable(value):
        return
    if drawable(low) and drawable(high):
        ends = num(scale(low)), num(scale(high))
        steps = f"M{num(other)} {ends[0]}V{ends[1]}" if upright else f"M{ends[0]} {num(other)}H{ends[1]}"
        drawing.path(steps, "whisker")
    note = f"{whole(row['method'])}: {value:.4g} [{low:.4g}, {high:.4g}] at {row['bits']:.3f} bits"
    x, y = (other, scale(value)) if upright else (scale(value), other)
    drawing.marker((x, y), look.marker, PAPER if hollow else look.color, note)


def main(argv: list[str]) -> int:
    """Draw the first table of a results folder into one SVG file."""
    if len(argv) != 2:
        print("use: python -m report.figures.forest RESULTS_FOLDER OUT.svg", file=sys.stderr)
        return 2
    try:
        tables = [(part, table) for part in load(argv[0]) for table in part.tables if table.rows]
        if not tables:
            raise UserError(f"no data: {argv[0]!r} holds no finished results; run run_taq_icml.py first")
        part, table = tables[0]
        title = whole(table.title)
        save(Path(argv[1]), alone(forest(part, table, title, SMALLER), [title, *ALONE]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
