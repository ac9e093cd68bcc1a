"""Every table and figure of a results folder, to filter, to keep, and two of its cells side by side."""

import streamlit as st

from app import folder, show
from app.options import check_address
from core.errors import UserError
from report.figures.build import drawers
from report.figures.files import standalone
from report.figures.frames import Part
from report.page import render, sweeps_of
from report.records import Result
from report.tables.filters import rows_of
from report.tables.pair import label, story
from report.tables.tables import TableData
from report.text import pair
from report.text.lines import footnotes
from report.text.render import sheets_of, story_text, text

FORMATS = {"csv": ("CSV", "text/csv"), "latex": ("LaTeX", "text/x-tex"), "markdown": ("Markdown", "text/markdown"),
           "json": ("JSON", "application/json")}
ENDS = {"latex": "tex", "markdown": "md"}
VIEWS = ("Tables", "Figures", "Two cells", "Files to keep")  # only the one that is open is computed
FLIPS = 10  # questions a page of those that flipped


def page() -> None:
    """Draw the page."""
    with show.one_sentence():
        every, parts, part = folder.opened()
        failed = [r for r in part.members if not r.ok]
        st.caption(f"{len(every)} cells in this folder; {len(part.cells)} of them stand below"
                   + (f"; {len(failed)} failed" if failed else ""))
        check_address("view", VIEWS)
        view = st.segmented_control("View", VIEWS, default=VIEWS[0], key="view", bind="query-params", required=True)
        if view == "Tables":
            _tables(_of_methods(part))
        elif view == "Figures":
            _figures(part)
        elif view == "Two cells":
            _two(list(part.cells))
        else:
            _files(part, parts)


def _of_methods(part: Part) -> list[TableData]:
    """The part's tables with the rows that are wanted; marks and p values are those of the whole."""
    check_address("method", part.methods)
    chosen = st.multiselect("Rows", part.methods, placeholder="all", key="method", bind="query-params")
    return rows_of(part.tables, chosen, None)


def _tables(tables: list[TableData]) -> None:
    detailed = st.toggle("Details of each data set: intervals, p values, flips", key="details", bind="query-params")
    for number, table in enumerate(tables):
        for place, one in enumerate(sheets_of(table, detailed) if table.rows else []):
            if place:
                st.markdown(f"**{show.plain(one.title)}**")
            show.sheet(one, f"sheet-{number}-{place}")
        if not table.rows:
            show.no_data("no finished cell in this table", folder.COMMAND)
        with st.expander("How to read it, and what is missing"):
            show.said(footnotes(table, "markdown", detailed))


def _figures(part: Part) -> None:
    """One figure at a time: some take a second to draw."""
    known = drawers(part)
    if (sweeps := sweeps_of(list(part.members))):
        known |= {one.title: (lambda one=one: [one]) for one in sweeps}
    check_address("figure", known)
    for figure in known[st.selectbox("Figure", list(known), key="figure", bind="query-params")]():
        show.figure(figure, f"figure-{figure.key}")
        if figure.svg:
            st.download_button("This figure as SVG", lambda figure=figure: standalone(figure), f"{figure.key}.svg",
                               "image/svg+xml", key=f"svg-{figure.key}")


def _two(cells: list[Result]) -> None:
    """Two cells down to the questions that flipped."""
    if len(cells) < 2:
        raise UserError("one cell alone cannot be compared; this command makes more: " + folder.COMMAND)
    named = {label(one): one for one in cells}
    left, right = st.columns(2)
    check_address("first", named)
    a = left.selectbox("First cell", list(named), key="first", bind="query-params")
    rivals = [name for name, one in named.items() if name != a and one.asked == named[a].asked]
    if not rivals:
        raise UserError("no other cell was asked the same documents as this one; choose another")
    check_address("second", rivals)
    b = right.selectbox("Second cell", rivals, key="second", bind="query-params")
    two = story(named[a], named[b])
    for number, one in enumerate(pair.sheets(two)):
        if not one.title.startswith("questions that flipped"):
            st.markdown(f"**{show.plain(one.title)}**")
            show.sheet(one, f"pair-{number}")
    show.said(pair.lines(two, every=True))
    _flipped(two)
    st.download_button("This comparison as Markdown", lambda: story_text(two, "markdown", True), "comparison.md",
                       "text/markdown")


def _flipped(two) -> None:
    """The questions that one cell answers right and the other wrong, a few at a time."""
    if not two.flipped:
        st.info("No question flipped between these cells.")
        return
    a, b = pair.names_of(two)
    last = -(-len(two.flipped) // FLIPS)
    at = st.number_input(f"Questions that flipped: {len(two.flipped)}; page", 1, last, 1) if last > 1 else 1
    for one in two.flipped[(at - 1) * FLIPS:at * FLIPS]:
        with st.expander(f"{one['flip']}: {show.plain(one['question'] or one['doc_id'])[:160]}"):
            show.text(one["question"] or one["doc_id"])
            for option in one["options"] or ():
                show.text(option)
            for who, answer in (("gold", one["gold"]), (a, one["first"]), (b, one["second"])):
                st.markdown(f"**{show.plain(who)}**")
                show.text("(no answer)" if answer is None else str(answer))


def _files(part: Part, parts: list[Part]) -> None:
    """Tables and the page, made when they are asked for."""
    places = st.columns(len(FORMATS) + 1)
    for place, (kind, (name, mime)) in zip(places, FORMATS.items()):
        place.download_button(f"Tables as {name}", lambda kind=kind: text(list(part.tables), kind, True),
                              f"tables.{ENDS.get(kind, kind)}", mime, width="stretch")
    places[-1].download_button("Report as HTML", lambda: _whole(parts), "report.html", "text/html", width="stretch")
    st.caption("Tables hold the details of each data set; the report is one page with every table and figure of the "
               "cells that the filters leave, and asks nothing of the network.")


def _whole(parts: list[Part]) -> str:
    return render(parts, sweeps_of([result for part in parts for result in part.members]))
