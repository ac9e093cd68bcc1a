"""The page as a browser shows it: wide, on a phone, in the dark, on paper, without scripts."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from report.figures.style import DARK, LIGHT
from report.page import write
from tests.report.conftest import hostile

pytestmark = pytest.mark.slow
# rows at two budgets, bits, maps, agreement; categories (eight methods at two budgets); time
PANELS = 2 * 2 + 2 + 2 * 2 + 2 * 2 + 2 * 8 + 2


def visit(browser, path: Path, width: int = 1280, **options):
    """Open a page; return it with what it complained of and what it asked for."""
    tab, complaints, asked = browser.new_page(viewport={"width": width, "height": 900}, **options), [], []
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    return tab, complaints, [url for url in asked if url != path.as_uri() and not url.startswith("data:")]


def pixels(png: bytes):
    from PIL import Image

    return Image.open(BytesIO(png)).convert("RGB")


def colours(png: bytes) -> int:
    return len(pixels(png).getcolors(2**24))


OUTSIDE = """[...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(t => { const r = t.getBoundingClientRect();
    return r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1; })
    .map(t => t.textContent + ' in ' + svg.getAttribute('aria-label')); })"""
SMALLEST = """Math.min(...[...document.querySelectorAll('svg[role=img] text')].map(t => {
  const svg = t.ownerSVGElement, scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return parseFloat(getComputedStyle(t).fontSize) * scale; }))"""
SIZES = "all => all.map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
EMPTY = "all => all.filter(e => !e.getBBox().width && e.textContent.trim()).length"


def test_a_browser_shows_it_without_a_complaint(browser, page):
    tab, complaints, asked = visit(browser, page)
    assert not complaints and not asked
    assert colours(tab.screenshot(full_page=True)) > 500
    boxes = tab.eval_on_selector_all("svg[role=img]", SIZES)
    assert len(boxes) == PANELS and all(w > 250 and h > 90 for w, h in boxes)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page must not scroll sideways"
    assert not tab.eval_on_selector_all("svg text", EMPTY)
    assert tab.evaluate(OUTSIDE) == [], "words must not be cut at the edge of their drawing"


def test_on_a_phone_panels_stand_one_below_the_other_and_can_be_read(browser, page):
    tab, complaints, _ = visit(browser, page, width=390, device_scale_factor=2)
    assert not complaints and tab.evaluate("document.documentElement.scrollWidth") <= 390
    lefts = tab.eval_on_selector_all("svg[role=img]", "all => all.map(e => e.getBoundingClientRect().left)")
    assert len(set(lefts)) == 1 and tab.evaluate(SMALLEST) >= 9 and tab.evaluate(OUTSIDE) == []


def test_in_the_dark_page_and_drawings_are_dark(browser, page):
    for scheme, palette in (("dark", DARK), ("light", LIGHT)):
        tab, _, _ = visit(browser, page, color_scheme=scheme)
        paper, ink = (tuple(int(palette[name][i:i + 2], 16) for i in (1, 3, 5)) for name in ("paper", "ink"))
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == f"rgb{paper}"
        shot = pixels(tab.locator("svg[role=img]").first.screenshot())
        assert max(shot.getcolors(2**24))[1] == paper and shot.getpixel((1, 1)) == paper
        assert tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == f"rgb{ink}"


def test_a_click_sorts_a_table(browser, page):
    tab, complaints, _ = visit(browser, page)
    column = "[...document.querySelector('table').tBodies[0].rows].map(r => parseFloat(r.cells[2].textContent))"
    tab.locator("summary").nth(1).click()  # the first figure's numbers
    before = tab.evaluate(column)
    tab.locator("table").first.locator("th").nth(2).click()
    assert tab.evaluate(column) == sorted(before) != before
    tab.locator("table").first.locator("th").nth(2).click()
    assert tab.evaluate(column) == sorted(before, reverse=True) and not complaints


def test_the_contents_stand_behind_one_button(browser, page):
    tab, complaints, _ = visit(browser, page)
    link = tab.locator("nav a", has_text="Where did the time go?")
    assert not link.is_visible()
    tab.locator("nav summary").click()
    link.click()
    assert not link.is_visible() and tab.url.endswith("#part-1-time") and not complaints


@pytest.mark.parametrize("scripts", [True, False])
def test_without_scripts_and_on_paper_it_is_whole(browser, page, scripts):
    tab, _, _ = visit(browser, page, java_script_enabled=scripts, color_scheme="dark")
    assert tab.locator("svg[role=img]").count() == PANELS and tab.locator("details").count() >= 10
    tables = tab.locator("details table")
    assert not tables.first.is_visible()
    tab.set_viewport_size({"width": 703, "height": 1000})  # A4 less its margins
    tab.emulate_media(media="print")
    assert not tab.locator("nav").is_visible() and tab.locator("svg[role=img]").first.is_visible()
    assert all(table.is_visible() for table in tables.all()), "the numbers are printed"
    if scripts:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 703, "nothing is cut at the paper's edge"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(tab.pdf()) > 50_000


def test_hostile_names_do_nothing_in_a_browser(browser, folder, tmp_path):
    tab, complaints, asked = visit(browser, write(hostile(folder, tmp_path / "bad"), tmp_path / "bad.html"), width=390)
    assert tab.evaluate("window.ran === undefined") and not complaints and not asked
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390 and tab.evaluate(OUTSIDE) == []


def test_a_large_grid_is_small_and_opens_at_once(browser, folder, tmp_path):
    """Thirteen methods, three data sets, two budgets, 210 linears: as large as the grids of the documentation."""
    big = tmp_path / "big"
    big.mkdir()
    kinds = (*(f"self_attn.{letter}_proj" for letter in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    fqns = [f"model.layers.{block}.{kind}" for block in range(30) for kind in kinds]
    rng, categories = np.random.default_rng(0), [f"category {i}" for i in range(14)]
    for path in sorted(folder.glob("*mmlu_pro__TAQ__*.json")) + sorted(folder.glob("*mmlu_pro__fp16__*.json")):
        base = json.loads(path.read_text())
        names = [f"method-{i}[calib=c4,seed={i}]" for i in range(13)] if base["avg_bits"] else ["fp16"]
        for dataset, name in ((d, n) for d in ("mmlu_pro", "code_mmlu", "other") for n in names):
            stem = f"{dataset}-{name}-{base['avg_bits']}"
            probe = {f: {"scores": rng.random(64).tolist(), "positions": list(range(64)),
                         "kept": rng.integers(0, 2, 64).tolist()} for f in fqns}
            levels = {f: int(b) for f, b in zip(fqns, rng.integers(2, 6, 210))}
            strata = {c: {"n": 11, "accuracy": {"value": 0.5, "low": 0.2, "high": 0.8}} for c in categories}
            cell = base | {"dataset": dataset, "cell": stem, "method": base["method"] | {"name": name}, "probe": probe,
                           "samples": f"{stem}.jsonl", "strata": strata, "bits": base["bits"] | {"per_linear": levels}}
            (big / f"{stem}.json").write_text(json.dumps(cell))
            shutil.copy(folder / base["samples"], big / f"{stem}.jsonl")
    drawn = write(big, tmp_path / "big.html")
    assert drawn.stat().st_size < 2e6
    for width in (1280, 390):
        tab, complaints, _ = visit(browser, drawn, width=width)
        assert not complaints and tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 2000
        assert tab.evaluate("document.documentElement.scrollWidth") <= width and tab.evaluate(OUTSIDE) == []
