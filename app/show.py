"""How the report's figures, tables and sentences look on a page of the app.

Their HTML is the report's own, which quotes every word that comes from a file; it stands in a component of its own, so
that Streamlit's text functions never see a data set's or a model's words as anything but plain text.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import streamlit as st

from core.errors import UserError
from report.figures.cards import Card
from report.figures.style import LAYOUT, STYLE, Figure
from report.page import HERE, environment, sheet_html
from report.text.sheets import Sheet

# ink and paper follow Streamlit's theme, light or dark, as the person sets it
COLOURS = """.report{--paper:var(--st-background-color);--ink:var(--st-text-color);
--soft:var(--st-secondary-background-color);
--mute:color-mix(in srgb,var(--st-text-color) 72%,var(--st-background-color));
--line:color-mix(in srgb,var(--st-text-color) 18%,var(--st-background-color));--link:var(--st-link-color);
color:var(--ink);font:15px/1.5 system-ui,"DejaVu Sans",Verdana,Arial,sans-serif;overflow-wrap:anywhere}
.report h3{font-size:1.05rem;margin:.75rem 0 .25rem}.report h4{font-size:.95rem;margin:.75rem 0 .25rem}
"""
SCRIPT = """export default function ({ parentElement, data }) {
  const place = parentElement.querySelector(".report");
  if (place.dataset.shown !== data) { place.innerHTML = data; place.dataset.shown = data; }
}"""


@cache
def style() -> str:
    """The report's style sheet without what is of the whole page."""
    sheet = (HERE / "page.css").read_text(encoding="utf-8")
    return COLOURS + sheet[sheet.index(".how,"):sheet.index("nav {")] + sheet[sheet.index(".cards {"):] + STYLE + LAYOUT


def html(text: str, key: str) -> None:
    """HTML of the report's own making."""
    place = st.components.v2.component("report", html='<div class="report"></div>', css=style(), js=SCRIPT)
    place(data=text, key=key)


def figure(of: Figure, key: str) -> None:
    """A figure with its numbers, or what is lacking."""
    html(str(environment().get_template("macros.html").module.body(of)), key)


def cards(of: Sequence[Card], key: str) -> None:
    """The answer in words, a card a data set."""
    answer = environment().get_template("macros.html").module.answer_card
    html(f'<div class="cards">{"".join(str(answer(card)) for card in of)}</div>', key)


def sheet(of: Sheet, key: str) -> None:
    """A table of text; the best is bold."""
    html(str(sheet_html(of)), key)


def said(lines: Iterable[str]) -> None:
    """Sentences below a table."""
    for line in lines:
        st.caption(plain(line))


def plain(words: str) -> str:
    """Words as Markdown that shows them letter by letter; they may come from anybody's file."""
    text = "".join(c if c.isprintable() else " " for c in str(words))
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-.!|~<>$:&" else c for c in text)


def text(words: str) -> None:
    """A text of a data set or a model, as it is, in lines that wrap."""
    st.code(words, language=None, wrap_lines=True)


def no_data(what: str, command: str) -> None:
    """What is not there, and the command that makes it."""
    st.info(f"no data: {plain(what)}")
    st.code(command, language="bash", wrap_lines=True)


@contextmanager
def one_sentence() -> Iterator[None]:
    """What cannot be used is one sentence on the page, and the rest of the page stays."""
    try:
        yield
    except UserError as error:
        st.error(plain(str(error)))
