"""How fast the app is: its start, its pages, its figures, and a folder of 1,000 cells.

    python -m benchmarks.app_speed [--results_dir DIR] [--cells 1000 --documents 64 --repeat 3]

Wall seconds in a real browser, the median of the repeats; each repeat starts a server.  A figure by its address is a
whole new page with that figure.  The baseline is measured in the same run: what a process takes that imports streamlit
and pandas and ends.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from benchmarks.report_speed import make_results
from report.figures.build import drawers
from report.figures.frames import load
from scripts.app_screens import opened, served, settled, turn_to

BASELINE = [sys.executable, "-c", "import streamlit, pandas"]
PORT = 8596
FIRST = "How to read it"  # words below the first table
PAGES = ("How it works", "Live demonstration", "Results", "Compare methods")


def main() -> None:
    """Print a line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results_dir", help="a real folder, such as that of scripts.app_screens (default: made-up)")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temp, opened() as browser:
        large = Path(temp) / "large"
        large.mkdir()
        make_results(large, args.cells, args.documents)
        for _ in range(args.repeat):
            note(took, "baseline: import streamlit, pandas", lambda: subprocess.run(BASELINE, check=True))
            measure(took, browser, args.results_dir or str(large), str(large), args.cells)
    base = statistics.median(took["baseline: import streamlit, pandas"])
    for what, seconds in took.items():
        print(f"{what:58s} {statistics.median(seconds):6.2f} s  {statistics.median(seconds) / base:5.2f} x baseline")


def note(took: dict, what: str, work) -> None:
    """Do it and keep how long it took."""
    begun = time.perf_counter()
    work()
    took.setdefault(what, []).append(time.perf_counter() - begun)


def measure(took: dict, browser, small: str, large: str, cells: int) -> None:
    """One server from its start on."""
    begun = time.perf_counter()
    with served("--results_dir", small, port=PORT) as url:
        took.setdefault("start: the server answers", []).append(time.perf_counter() - begun)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(url)
        settled(tab)
        took.setdefault("start: the first page is drawn", []).append(time.perf_counter() - begun)
        for page in PAGES:
            note(took, f"page: {page}, first time", lambda page=page: turn_to(tab, page))
        for page in PAGES:
            note(took, f"page: {page}, again", lambda page=page: turn_to(tab, page))
        for name in drawers(load(small)[0]):
            place = f"{url}/results?view=Figures&figure={quote(name)}"
            note(took, f"figure by its address: {name}", lambda place=place: show(tab, place, "View"))
        tab.close()
        for which in ("first time", "again, in a new tab"):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            place = f"{url}/results?results={large}"
            note(took, f"results of {cells:,} cells, {which}", lambda tab=tab, place=place: show(tab, place, FIRST))
            tab.close()


def show(tab, url: str, words: str) -> None:
    """To a page by its address, until words of it are there and all is drawn."""
    tab.goto(url)
    tab.get_by_text(words).first.wait_for(timeout=120_000)
    settled(tab)


if __name__ == "__main__":
    main()
