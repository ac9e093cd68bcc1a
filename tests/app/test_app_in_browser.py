"""The app as a person meets it: a real server, a real browser, the demo's real model."""

import os
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest

from scripts.app_screens import served, settled, turn_to

pytestmark = [pytest.mark.slow, pytest.mark.real]
REPO = Path(__file__).parents[2]
# milliseconds until a page is drawn, and until four cells are computed: 20 s with AVX-512, minutes without it
DRAWN, SLOWEST = 60_000, 600_000
PAGES = ("The idea", "How it works", "Live demonstration", "Results", "Compare methods")
# what stands out of the window to the right, and is not inside something that scrolls
CLIPPED = """[...document.querySelectorAll('[data-testid=stMain] *')].filter(e => {
  const box = e.getBoundingClientRect(); if (!box.width || box.right <= innerWidth + 1) return false;
  for (let p = e; p && p.dataset?.testid !== 'stMain'; p = p.parentElement ?? p.getRootNode().host)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return false;
  return true; }).map(e => e.tagName + ' ' + (e.textContent || '').slice(0, 40))"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, real_model):
    """The app on a free port, with a results folder of its own."""
    pytest.importorskip("streamlit", reason="needs streamlit (requirements-app.txt)")
    root = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (root / "cache" / "base").mkdir(parents=True)
    (root / "cache" / "base" / real_model.name).symlink_to(real_model)
    with served("--results_dir", str(root / "results"), "--cache_dir", str(root / "cache"), port=port) as url:
        yield {"url": url, "root": root}


def visit(browser, server, width: int = 1280, height: int = 1000, **options):
    """A tab on the first page; what it complains of, and whom it asks besides the server."""
    tab, complaints = browser.new_page(viewport={"width": width, "height": height}, **options), []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith((server["url"], "data:", "blob:", "ws://127.0.0.1"))
           else complaints.append(f"asked {request.url}"))
    tab.goto(server["url"])
    tab.get_by_role("heading", name="The idea", exact=True).wait_for(timeout=DRAWN)
    return tab, complaints


def press(tab, slider: str, key: str, asked: str) -> None:
    """Move a slider by keyboard, until the address asks for what it then says and the page is drawn."""
    tab.get_by_role("slider", name=slider).focus()
    tab.keyboard.press(key)
    tab.wait_for_function("asked => location.search.slice(1).split('&').includes(asked)", arg=asked, timeout=DRAWN)
    settled(tab)


def command_says(tab, words: str) -> None:
    """Wait until the page's command has ``words``; the address is set while the page is still being drawn."""
    tab.get_by_test_id("stCode").first.filter(has_text=words).wait_for(timeout=DRAWN)


def colours(tab) -> int:
    from PIL import Image

    return len(Image.open(BytesIO(tab.screenshot())).convert("RGB").getcolors(2**24))


def test_the_live_demonstration_from_end_to_end(browser, server):
    """Run, watch in two tabs, look at the answers, ask a question; the same bytes as the command's own."""
    tab, complaints = visit(browser, server)
    turn_to(tab, "Live demonstration")
    tab.get_by_role("combobox", name="Method").fill("TAQ")  # takes no gradients: three times as fast
    tab.get_by_role("option", name="TAQ", exact=True).click()
    settled(tab)
    command_says(tab, "--method TAQ ")
    tab.get_by_text("How many documents").click()
    for label, name in (("Calibration documents", "calib"), ("Questions", "questions")):
        for size in (16, 8):
            press(tab, label, "ArrowLeft", f"{name}={size}")
    tab.get_by_role("button", name="Run", exact=True).focus()
    tab.keyboard.press("Enter")  # by keyboard alone
    tab.get_by_role("button", name="Cancel").wait_for(timeout=DRAWN)
    second, _ = browser.new_page(), None
    second.goto(tab.url)  # a second tab finds the run
    second.get_by_role("button", name="Cancel").wait_for(timeout=DRAWN)
    assert not second.get_by_role("button", name="Run", exact=True).count()
    tab.get_by_text("of 4 cells").wait_for(timeout=SLOWEST)
    tab.get_by_text("Question by question").wait_for(timeout=SLOWEST)
    settled(tab)
    assert len(list((server["root"] / "results" / ".app").iterdir())) == 1
    tab.get_by_role("textbox", name="Ask both a question of your own").fill("What is the capital of France?")
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.get_by_text("Greedy, at most").wait_for(timeout=SLOWEST)
    tab.get_by_text("The capital of France is Paris.").wait_for(timeout=DRAWN)
    assert complaints == [] and colours(tab) > 50 and tab.evaluate(CLIPPED) == []
    second.reload()
    second.get_by_text("Question by question").wait_for(timeout=DRAWN)
    second.close()
    tab.close()
    _same_bytes(server["root"])


def _same_bytes(root: Path) -> None:
    command = [sys.executable, "run_taq_icml.py", "--run_type", "demo", "--model", "smollm2-135m", "--dataset",
               "trivia_qa", "--method", "TAQ", "--avg_bits", "3.25", "--quantizer", "rtn", "--calib_size", "8",
               "--eval_size", "8", "--results_dir", str(root / "cli"), "--cache_dir", str(root / "cli_cache")]
    (root / "cli_cache" / "base").mkdir(parents=True)
    (root / "cli_cache" / "base" / "SmolLM2-135M-Instruct").symlink_to(
        (root / "cache" / "base" / "SmolLM2-135M-Instruct").resolve())
    subprocess.run(command, cwd=REPO, check=True, capture_output=True, timeout=SLOWEST / 1000,
                   env=os.environ | {"OMP_NUM_THREADS": "2"})
    mine, theirs = ({path.name: path.read_bytes() for path in sorted((root / name).glob("*.jsonl"))}
                    for name in ("results", "cli"))
    assert len(mine) == 4 and mine == theirs


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_every_page_on_a_phone_and_in_the_dark(browser, server, width, scheme):
    tab, complaints = visit(browser, server, width, color_scheme=scheme)
    for page in PAGES:
        if (menu := tab.get_by_test_id("stExpandSidebarButton")).is_visible():  # on a phone the side bar is closed
            menu.click()
            tab.wait_for_timeout(500)
        turn_to(tab, page)
        assert tab.evaluate(CLIPPED) == [], page
        assert colours(tab) > 20, page
        paper = tab.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(",")[:3])) < 200) == (scheme == "dark"), page
    assert complaints == []
    tab.close()


def test_choices_stay_while_other_pages_are_shown(browser, server):
    tab, _ = visit(browser, server)
    turn_to(tab, "Live demonstration")
    for bits in ("3.5", "3.75", "4"):
        press(tab, "Target bits a weight", "ArrowRight", f"bits={bits}")
    command_says(tab, "--avg_bits 4 ")
    assert "bits=4" in tab.url
    turn_to(tab, "Compare methods")
    assert "live_model" not in tab.url
    turn_to(tab, "Live demonstration")
    command_says(tab, "--avg_bits 4 ")
    assert "bits=4" in tab.url
    tab.reload()
    settled(tab)
    command_says(tab, "--avg_bits 4 ")
    tab.close()


def test_a_run_outlives_the_server(server, tmp_path):
    """The process that the app started belongs to nobody: it ends by itself, and is found again."""
    from app.jobs import DONE, RUNNING, Job

    (tmp_path / "script.py").write_text("import time; time.sleep(4); print('ended')")
    job = Job(str(tmp_path), (str(tmp_path / "script.py"),))
    code = f"from app.jobs import Job; Job({str(tmp_path)!r}, {job.words!r}).start()"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, timeout=60)  # and this process is gone
    assert job.state() == RUNNING
    end = time.monotonic() + 60
    while job.state() == RUNNING and time.monotonic() < end:
        time.sleep(0.2)
    assert job.state() == DONE and job.log() == "ended"
