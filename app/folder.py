"""A results folder, read once and kept as long as its files are the same."""

from pathlib import Path

import streamlit as st

from app import show
from app.options import check_address, results_dir
from core.digest import digest
from core.errors import UserError
from report.figures.frames import Part, parts_of
from report.records import Result, load_results, read_result
from report.tables.filters import choose

FILTERS = {"model": "Model", "dataset": "Data set", "avg_bits": "Budget", "run_type": "Run type"}
COMMAND = "python run_taq_icml.py --run_type demo"


def state(folder: str) -> str:
    """Digest of the names, sizes and times of a folder's results: another one whenever a file is another."""
    try:
        return digest([[p.name, s.st_size, s.st_mtime_ns] for p in sorted(Path(folder).glob("*.json"))
                       for s in [p.stat()]])
    except OSError:
        return ""


@st.cache_resource(show_spinner=False, max_entries=20_000)
def _result(path: str, size: int, changed: int) -> Result:
    return read_result(Path(path))


@st.cache_resource(show_spinner="Reading results", max_entries=8)
def _results(folder: str, of: str) -> list[Result]:
    if not Path(folder).is_dir():
        return load_results(Path(folder))  # which says what is wrong
    found = [(p, p.stat()) for p in sorted(Path(folder).glob("*.json"))]
    return [_result(str(p), s.st_size, s.st_mtime_ns) for p, s in found]


def results(folder: str) -> list[Result]:
    """Every result of a folder, failed ones too; UserError for a folder or a file that is none."""
    return list(_results(folder, state(folder)))


@st.cache_resource(show_spinner="Comparing cells", max_entries=16)
def _parts(folder: str, of: str, wanted: tuple) -> list[Part]:
    return parts_of(choose(_results(folder, of), {name: list(values) for name, values in wanted}))


def filters(every: list[Result]) -> dict[str, list]:
    """Choices over the results' models, data sets, budgets and run types, in the address as in the page."""
    there = {"model": {r.model.name for r in every}, "dataset": {r.dataset for r in every},
             "avg_bits": {r.avg_bits for r in every} - {None}, "run_type": {r.run_type for r in every}}
    wanted, places = {}, st.columns(len(FILTERS))
    for place, (name, label) in zip(places, FILTERS.items()):
        check_address(name, there[name])
        wanted[name] = place.multiselect(label, sorted(there[name]), key=name, bind="query-params", placeholder="all")
    return wanted


def opened() -> tuple[list[Result], list[Part], Part]:
    """The page's folder: all its cells, the parts that the filters leave, and the one that is chosen; UserError where
    there is none."""
    folder = results_dir()
    of = state(folder)
    every = _results(folder, of)
    if not every:
        raise UserError(f"no data: {folder!r} holds no results; this command makes some: {COMMAND}")
    wanted = filters(every)
    left = _parts(folder, of, tuple((name, tuple(values)) for name, values in wanted.items() if values))
    return every, left, _one_of(left)


def _one_of(parts: list[Part]) -> Part:
    """The cells that may be compared: one model under one set of settings, as the address says."""
    if len(parts) == 1:
        st.caption(show.plain(parts[0].title))
        return parts[0]
    named = {part.title: part for part in parts}
    check_address("part", named)
    return named[st.selectbox("Cells that may be compared", list(named), key="part", bind="query-params",
                              help="One model, machine and set of settings; only these are measured alike.")]
