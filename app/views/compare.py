"""Which method keeps the most at equal bits, what cannot be told apart, and what a bit buys."""

import streamlit as st

from app import folder, show
from report.figures import cards
from report.figures.curves import curve_figure
from report.figures.frames import Part
from report.figures.style import looks
from report.tables.tables import TableData
from report.text.lines import chance_line, power_line


def page() -> None:
    """Draw the page."""
    with show.one_sentence():
        _, _, part = folder.opened()
        for number, table in enumerate(part.tables):
            _answer(part, table, number)
        st.header("Value against true stored bits", anchor=False)
        show.figure(curve_figure(part), "curve")
        st.caption(show.plain(cards.LEGEND))


def _answer(part: Part, table: TableData, number: int) -> None:
    """One budget in words."""
    budget = table.about["avg_bits"]
    st.header("Rows with bits of their own" if budget is None else f"With at most {budget:g} stored bits a weight",
              anchor=False)
    if not table.rows:
        show.no_data("no finished cell in this table", folder.COMMAND)
        return
    if table.missing:
        st.warning(f"{len(table.missing)} cells of this table have no result: what follows rests on the others.")
    show.cards(cards.cards(table, looks(part.methods)), f"cards-{number}")
    show.said([*chance_line(table), *(line for dataset in table.datasets if (line := power_line(table, dataset)))])
