"""What the app was started with: folders, as flags behind ``--``, and the results folder in the address."""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import streamlit as st

RESULTS = "results"  # query parameter, and the session's own memory of it


@dataclass(frozen=True)
class Options:
    """Folders of the harness."""

    results_dir: str = "results"
    cache_dir: str = "saved_models"
    data_dir: str | None = None


@cache
def _parsed(argv: tuple[str, ...]) -> Options:
    from core.commandline import Parser

    parser = Parser(prog="streamlit run app/streamlit_app.py --", description="The demonstration.", allow_abbrev=False)
    parser.add_argument("--results_dir", default="results", metavar="DIR", help="results folder (default: results)")
    parser.add_argument("--cache_dir", default="saved_models", metavar="DIR",
                        help="where scores, plans and samples are kept (default: saved_models)")
    parser.add_argument("--data_dir", metavar="DIR", help="folder with data sets (default: the embedded rows)")
    return Options(**vars(parser.parse_args(argv)))


def options() -> Options:
    """The flags behind ``streamlit run app/streamlit_app.py --``; UserError for one that there is not."""
    return _parsed(tuple(sys.argv[1:]) if Path(sys.argv[0]).name == "streamlit_app.py" else ())


def results_dir() -> str:
    """The results folder that the address names, else the one chosen before, else the one of the flags."""
    named = st.query_params.get(RESULTS) or st.session_state.get("results_dir") or options().results_dir
    st.session_state["results_dir"] = named
    if named != options().results_dir:
        st.query_params[RESULTS] = named  # so that the address of every page names it
    return named
