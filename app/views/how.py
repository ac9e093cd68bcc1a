"""Step by step what quantization does to a linear, what the score keeps, and what a bit costs, on measured data."""

import streamlit as st

from app import linears, show
from app.options import check_address, results_dir
from report.figures.linear import histogram_figure, level_figure, map_figure
from report.measured import Linear

WINDOWS = (32, 64, 96, 128, 256, 512, 1024, 2048, 4096)
STEPS = (
    "**One scale a group.** Weights that stand side by side share a scale and a zero point, and each is rounded to the "
    "nearest of the few values that its code can name. The more bits a code has, the closer the values stand.",
    "**Keep what the task needs.** Every weight of the model has a score. The allocator sorts them all, keeps the best "
    "at 16 bits and stops where the budget of stored bits is spent. Move and narrow the window: below 96 weights a "
    "side, a square is a single weight.",
    "**Everything is counted.** Codes, scales, zero points, kept weights and the places where they stand are stored "
    "bits. A kept weight costs its 16 bits and its address, so keeping one percent costs more than it seems.",
)


def page() -> None:
    """Draw the page."""
    st.caption("The guide explains each step; every picture is of a linear that was measured.")
    of = linears.chosen(results_dir())
    if of is None:
        return
    with _guide(STEPS[0]):
        show.figure(histogram_figure(of), "histogram")
    with _guide(STEPS[1]):
        show.figure(map_figure(of, _window(of)), "map")
    with _guide(STEPS[2]):
        show.figure(level_figure(of), "levels")
        _costs(of)


def _guide(words: str):
    message = st.chat_message("assistant", avatar=":material/school:")
    message.markdown(words)
    return message


def _window(of: Linear) -> tuple[int, int, int, int] | None:
    """A window of the linear, as the controls and the address say; None: the whole."""
    rows, columns = of.shape
    sizes = ["whole", *(str(size) for size in WINDOWS if size < max(rows, columns))]
    check_address("window", sizes)
    size = st.select_slider("Window", sizes, "whole", key="window", bind="query-params",
                            help="weights a side; the arrow keys move it")
    if size == "whole":
        return None
    high, wide = min(int(size), rows), min(int(size), columns)
    left, right = st.columns(2)
    top = left.slider("First row", 0, rows - high, 0, key=f"row-{high}") if rows > high else 0
    start = right.slider("First column", 0, columns - wide, 0, key=f"column-{wide}") if columns > wide else 0
    return top, top + high, start, start + wide


def _costs(of: Linear) -> None:
    """What a bit costs, in the numbers of this linear."""
    weights = of.shape[0] * of.shape[1]
    level = next((one for one in of.levels if one["bits"] == of.bits), None)
    stored = "no data" if level is None else f"{level['stored'] * weights / 8e6:.2f} MB"
    for place, (label, value) in zip(st.columns(3), (
            ("This linear at 16 bits", f"{weights * 2 / 1e6:.2f} MB"), (f"At {of.bits}-bit codes", stored),
            ("Kept here at 16 bits", f"{len(of.kept):,} weights"))):
        place.metric(label, value)
    st.caption(f"The whole row stores {of.average:.3f} bits a weight over all linears, kept weights and their places "
               "included.")
