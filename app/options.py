"""What the app was started with: folders, as flags behind ``--``; and what the address asks for."""

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import streamlit as st

RESULTS = "results"  # the side bar's widget, and its query parameter
# what pages remember while another one is shown; every other widget is forgotten with its page
REMEMBERED = ("model", "dataset", "avg_bits", "run_type", "part", "method", "details", "view", "figure", "linear",
              "window", "live_model", "task", "row", "bits", "kept", "quantizer", "calib", "questions")


@dataclass(frozen=True)
class Options:
    """Folders of the harness, whole: its processes may run in another one."""

    results_dir: str
    cache_dir: str
    data_dir: str | None


@cache
def _parsed(argv: tuple[str, ...], _folder: str) -> Options:
    from core.commandline import Parser

    parser = Parser(prog="streamlit run app/streamlit_app.py --", description="The demonstration.", allow_abbrev=False)
    parser.add_argument("--results_dir", default="results", metavar="DIR", help="results folder (default: results)")
    parser.add_argument("--cache_dir", default="saved_models", metavar="DIR",
                        help="where scores, plans and samples are kept (default: saved_models)")
    parser.add_argument("--data_dir", metavar="DIR", help="folder with data sets (default: the embedded rows)")
    given = parser.parse_args(argv)
    return Options(**{name: value and os.path.abspath(value) for name, value in vars(given).items()})


def options() -> Options:
    """The flags behind ``streamlit run app/streamlit_app.py --``; UserError for one that there is not."""
    return _parsed(tuple(sys.argv[1:]) if Path(sys.argv[0]).name == "streamlit_app.py" else (), os.getcwd())


def results_dir() -> str:
    """The results folder of the side bar or of the address, else the one of the flags."""
    given = st.session_state.get(RESULTS) or st.query_params.get(RESULTS)
    return os.path.abspath(os.path.expanduser(given)) if given else options().results_dir


def remember() -> None:
    """Keep what pages were asked for while other pages are shown."""
    for name in REMEMBERED:
        if name in st.session_state:
            st.session_state[name] = st.session_state[name]


def check_address(name: str, known: Collection) -> None:
    """Say what the address asks for and is not there, before its widget drops it."""
    there = {str(value) for value in known}
    if lost := [value for value in st.query_params.get_all(name) if value and value not in there]:
        from app.show import plain

        st.warning(plain(f"the address asks for {name} {', '.join(lost)[:200]}, which is not there; shown is what "
                         "stands below"))
