"""The demonstration's entry: ``streamlit run app/streamlit_app.py [-- --results_dir DIR --cache_dir DIR]``.

Pages and what they ask for stand in the address, so a page can be linked, reloaded and opened twice.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # Streamlit's first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

import streamlit as st

from app import show
from app.jobs import short
from app.options import RESULTS, options, remember
from app.views import compare, how, idea, live, results

PAGES = ((idea, "The idea", "idea"), (how, "How it works", "how"), (live, "Live demonstration", "live"),
         (results, "Results", "results"), (compare, "Compare methods", "compare"))


def main() -> None:
    """Draw the page that the address names."""
    st.set_page_config(page_title="Task-aware quantization", layout="wide", page_icon=str(ROOT / "app/icon.png"))
    pages = [st.Page(view.page, title=title, url_path=path, default=view is idea) for view, title, path in PAGES]
    chosen = st.navigation(pages, position="sidebar")
    with show.one_sentence():
        remember()
        st.sidebar.text_input("Results folder", short(options().results_dir), key=RESULTS, bind="query-params",
                              help="Every number on these pages was measured and is read from this folder, or made "
                              "into it.")
        st.title(chosen.title, anchor=False)
        chosen.run()


main()
