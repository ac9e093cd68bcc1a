"""The app's pictures in docs/APP.md: makes a small results folder, starts the app on it and takes a picture a page.

    python -m scripts.app_screens --results_dir results/screens [--out docs/figures]

needs requirements-dev.txt and a Chromium; minutes where the folder is empty, seconds where its cells are there.
"""

import io
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from core.commandline import Parser, exit_status
from core.errors import UserError

PORT = 8597
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
SIZES = ("--calib_size", "32", "--eval_size", "32")
GRID = ("run_taq_icml.py", "--run_type", "demo", "--dataset", "trivia_qa", "mmlu_pro", "code_mmlu", "--method",
        "TaCQ", "TAQ", "TAQoS", "--avg_bits", "3.25", "4.25", "--quantizer", "rtn", *SIZES)
LINEAR = ("-m", "scripts.linear", "--model", "smollm2-135m", "--dataset", "trivia_qa", "--avg_bits", "3.25", "--linear",
          "layers.15.mlp.down_proj", *SIZES)
SCREENS = (  # file, page, width, height, colour scheme
    ("idea", "", 1100, 1500, "light"), ("how", "how", 1100, 1750, "light"),
    ("live", "live", 1100, 1650, "light"), ("results", "results", 1100, 1150, "light"),
    ("compare", "compare", 1100, 1500, "dark"), ("phone", "live", 390, 844, "light"))


def main(argv: list[str] | None = None) -> int:
    """Make the data, start the app, take the pictures; returns the exit status."""
    import argparse

    parser = Parser(prog="python -m scripts.app_screens", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results_dir", required=True, metavar="DIR", help="made and filled where cells are missing")
    parser.add_argument("--cache_dir", default="saved_models", metavar="DIR", help="default: saved_models")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures", metavar="DIR", help="where app_*.png go "
                        "(default: docs/figures)")
    args = parser.parse_args(argv)
    places = ("--results_dir", args.results_dir, "--cache_dir", args.cache_dir)
    for words in (GRID, LINEAR):
        subprocess.run([sys.executable, *words, *places], cwd=ROOT, check=True)
    with served(*places) as url, opened() as browser:
        for name, page, width, height, scheme in SCREENS:
            path = args.out / f"app_{name}.png"
            take(browser, f"{url}/{page}", path, {"width": width, "height": height}, scheme)
            print(path, f"{path.stat().st_size / 1000:.0f} kB")
    return 0


@contextmanager
def served(*flags: str, port: int = PORT):
    """The app on a port of this machine as long as the block runs."""
    process = subprocess.Popen([sys.executable, "-m", "streamlit", "run", "app/streamlit_app.py", "--server.port",
                                str(port), "--", *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        while not answers(url):
            if process.poll() is not None:
                raise UserError(f"the app ended at once; is port {port} taken?")
            time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Whether a server says that it is well."""
    try:
        return urllib.request.urlopen(f"{url}/_stcore/health", timeout=5).read() == b"ok"
    except OSError:
        return False


@contextmanager
def opened():
    """A headless browser; UserError where there is none."""
    from playwright.sync_api import sync_playwright

    where = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if where is None:
        raise UserError("no Chromium is on this machine's path; install one, such as by apt-get install chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=where, args=FLAGS)
        yield browser
        browser.close()


def settled(tab) -> None:
    """Wait until the page is drawn."""
    tab.wait_for_selector("h1", timeout=60_000)
    tab.wait_for_function("document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'",
                          timeout=120_000)
    tab.wait_for_timeout(100)


def turn_to(tab, page: str) -> None:
    """To a page by its link, until it is drawn."""
    tab.get_by_role("link", name=page).click()
    tab.get_by_role("heading", name=page, exact=True).wait_for(timeout=60_000)
    settled(tab)


def take(browser, url: str, path: Path, size: dict, scheme: str) -> None:
    """One picture of a page's upper part."""
    from PIL import Image

    tab = browser.new_page(viewport=size, color_scheme=scheme)
    tab.goto(url)
    settled(tab)
    tab.wait_for_timeout(1500)  # fonts and what fades in
    Image.open(io.BytesIO(tab.screenshot())).convert("RGB").save(path, optimize=True)
    tab.close()


if __name__ == "__main__":
    sys.exit(exit_status(main))
