"""The report page: every figure with its numbers, nothing that runs or loads, and what is missing is said."""

import hashlib
import json
import re
import shutil
from base64 import b64encode
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from core.errors import UserError
from harness.cli.main import main
from report.figures import style
from report.figures.agreement import LEAST, agreement, matrix, pair, spearman
from report.figures.curves import beside, figures
from report.figures.curves import main as figures_main
from report.figures.frames import curve, layers, load, place, plain, tidy
from report.page import section, write

METHODS = ("TAQ", "TAQO", "TAQ-native", "magnitude", "TaCQ-weight")
HOSTILE = ("<script>window.ran=1</script>", "<img src=x onerror=window.ran=1>", "\"'><b>$\\frac{1}$\u0007",
           "</text></svg><script>window.ran=1</script>")


def tiny_results(tiny_folder: Path, root: Path, *more: str) -> Path:
    """A small grid's results, alone in a folder."""
    assert main(["--model", str(tiny_folder), "--dataset", "mmlu_pro", "trivia_qa", "--method", *METHODS, "--avg_bits", "4.75", "5.5",
                 "--quantizer", "rtn", "--calib_tokens", "150", "--eval_size", "16", "--calib_size", "6", "--threads", "1",
                 "--max_new_tokens", "3", "--device", "cpu", "--cache_dir", str(root / "cache"), "--results_dir", str(root / "results"), *more]) == 0
    shutil.rmtree(root / "cache")
    return root / "results"


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    return tiny_results(tiny_folder, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    return write(folder, tmp_path_factory.mktemp("page") / "report.html")


def rewritten(folder: Path, copy: Path, change) -> Path:
    """A copy of the results in which ``change(cell)`` has edited every summary."""
    shutil.copytree(folder, copy)
    for path in copy.glob("*.json"):
        cell = json.loads(path.read_text())
        change(cell)
        path.write_text(json.dumps(cell))
    return copy


class Elements(HTMLParser):
    """Tags, their attributes and the text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


# --- numbers

def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0))) and np.isnan(spearman(np.array([1, np.nan, 2]), np.arange(3.0)))


def cell(name: str, probe: dict, **more) -> dict:
    return {"method": {"name": name}, "dataset": "d", "avg_bits": 2.0, "seed": 0, "cell": name, "probe": probe} | more


def test_masks_overlap_as_counted_by_hand():
    """Twelve positions of linear a kept by one, eight of them by the other; of linear b the other kept none, so its result has no mask there."""
    scores = list(range(64))
    one = cell("one", {"a": {"scores": scores, "positions": scores, "kept": [1] * 12 + [0] * 52},
                       "b": {"scores": scores[::-1], "positions": scores, "kept": [0] * 60 + [1] * 4}})
    two = cell("two", {"a": {"scores": scores, "positions": scores, "kept": [0] * 4 + [1] * 8 + [0] * 52}, "b": {"scores": scores}})
    row = pair(one, two)
    assert row["masks"] == 8 / 16 and row["n_union"] == 16 and row["n_weights"] == 128
    hit = (16 / 128) * (8 / 128)
    assert row["by_chance"] == pytest.approx(hit / (24 / 128 - hit))
    assert row["weights"] == pytest.approx((1 - 1) / 2)  # the same order in a, the reverse in b
    few = cell("few", {"a": {"scores": scores, "positions": scores, "kept": [1] * (LEAST - 1) + [0] * 55}})
    assert np.isnan(pair(few, few)["masks"]), "nine kept positions are too few for a number"


def test_scores_of_blocks_and_of_weights_meet_at_the_linears_only():
    rng = np.random.default_rng(1)
    weights = {f"l{i}": {"scores": rng.random(64).tolist(), "positions": list(range(64)), "kept": [1] * 64} for i in range(6)}
    blocks = {f"l{i}": {"scores": [float(np.mean(weights[f'l{i}']["scores"]))]} for i in range(6)}
    row = pair(cell("w", weights), cell("b", blocks))
    assert row["linears"] == pytest.approx(1) and np.isnan(row["weights"]) and np.isnan(row["masks"]) and row["n_weights"] == 0
    moved = {f: p | {"positions": [q + 1 for q in p["positions"]]} for f, p in weights.items()}
    assert np.isnan(pair(cell("w", weights), cell("m", moved))["weights"]), "other positions must not be paired"


def test_agreement_leaves_out_what_says_nothing():
    probe = {f"l{i}": {"scores": [float(i)]} for i in range(4)}
    cells = [cell("a", probe), cell("b", probe), cell("same", {f: {"scores": [1.0]} for f in probe}), cell("none", {}), cell("a", {}, seed=1)]
    pairs = agreement(cells, 2.0, "d", ["none", "same", "b", "a"])
    assert pairs[["a", "b"]].to_numpy().tolist() == [["b", "a"]]
    assert matrix(pairs, "linears").to_numpy().tolist() == [[1, 1], [1, 1]] and not len(matrix(pairs, "masks"))
    assert not len(agreement(cells[2:], 2.0, "d", ["none", "same"]))


def test_the_front_is_what_nothing_beats_at_equal_or_fewer_bits():
    rows = [("fp16", 16.0, 9.0), ("low", 2.0, 1.0), ("tied", 2.24, 2.5), ("best", 2.245, 3.0), ("worse", 3.0, 2.0), ("high", 3.0, 4.0)]
    frame = pd.DataFrame([{"dataset": "d", "method": m, "seed": 0, "bits": b, "n": 9, "budgeted": True, "loglik": -v, "accuracy": v,
                           "accuracy_low": v - 0.6, "accuracy_high": v + 0.6, "d_loglik": None, "d_loglik_low": None, "d_loglik_high": None}
                          for m, b, v in rows])
    found = curve(SimpleNamespace(tables=[SimpleNamespace(frame=frame)])).set_index("method")
    assert found["accuracy_front"].to_dict() == {"fp16": "", "low": "front", "tied": "reaches it", "best": "front", "worse": "", "high": "front"}
    assert (found["d_loglik_front"] == "").all()


def test_rows_of_equal_bits_stand_side_by_side_around_them():
    at, start = beside(np.array([2.0, 3.0, 3.001, 3.002]))
    assert at[0] == start[0] == 2.0 and len(set(at)) == 4 and (start[1:] == at[1]).all() and at[1:].mean() == pytest.approx(3.001, abs=1e-9)


def test_a_linears_place_and_its_bits():
    assert place("model.layers.11.mlp.down_proj") == (11, "mlp.down_proj") and place("transformer.h.0.mlp.experts.3.w1") == (0, "mlp.experts.w1")
    assert place("lm_head") == (0, "lm_head")
    bits = {"per_linear": {"h.0.experts.0.up": 2, "h.0.experts.1.up": 4, "h.1.experts.0.up": 8}}
    found = layers({"bits": bits, "probe": {"h.1.experts.0.up": {"kept": [1, 0, 0, 1]}}})
    assert found.to_dict("list") == {"block": [0, 1], "kind": ["experts.up"] * 2, "bits": [3, 8], "kept": [0, 0.5]}


def test_methods_differ_by_more_than_colour():
    look = style.looks(["fp16", "uniform", "random", *(f"m{i}" for i in range(40))])
    assert len({(one.color, one.marker) for one in look.values()}) == 43
    for a, b in combinations([f"m{i}" for i in range(7)], 2):
        assert look[a].marker != look[b].marker and look[a].hatch != look[b].hatch
    assert look["m0"] == style.looks(["m0", "m1"])["m0"], "a method's look must not hang on the controls beside it"


def test_names_that_no_font_holds():
    assert plain("a\nb\x00c") == "a?b?c" and len(plain("x" * 500)) == 32 and plain("$x_1$") == "$x_1$"


# --- the page

def test_every_figure_has_its_numbers_and_how_to_read_it(page):
    text = page.read_text()
    sections = re.findall(r'<section id="part-1-.*?</section>', text, flags=re.S)
    titles = [re.search("<h3>(.*?)</h3>", s).group(1) for s in sections]
    assert len(set(titles)) == len(titles) == 1 + 2 + 2 + 2 + 2 + 1, titles  # bits; rows, maps, agreement and categories at two budgets; time
    for part in sections:
        words = " ".join(ElementTree.fromstring(re.search("<svg .*</svg>", part, flags=re.S).group()).itertext())
        assert "magnitude" in words and ("trivia_qa" in words or "Which kinds" in part), "methods and data sets are named in the drawing"
        assert part.count("<svg ") == 1 and 'class="how"' in part and "<table" in part[part.index("<details"):]
        assert 'class="lack"' not in part
    for method in (*METHODS, "fp16", "uniform", "random"):
        assert text.count(f">{method}<") >= 3
    assert "incomplete" not in text


def test_the_numbers_are_the_results(folder, page):
    """The page's rows hold the accuracies of the summaries."""
    shown = page.read_text()
    rows = shown[shown.index('id="part-1-rows-0"'):]
    results = [json.loads(p.read_text()) for p in folder.glob("*.json")]
    for result in results:
        if result["method"]["name"] == "magnitude" and result["avg_bits"] == 4.75:
            value = f"{result['metrics']['accuracy']['value']:.5g}"
            assert re.search(rf"<td>{result['dataset']}</td>\s*<td>magnitude</td>\s*(<td>[^<]*</td>\s*){{3}}<td>{value}</td>", rows)


def test_the_page_loads_nothing_and_runs_its_own_script_alone(page):
    text = page.read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert all(a.startswith("http://www.w3.org/") for a in addresses), addresses
    found = Elements(text)
    assert found.tags.count("script") == 1 and not {"link", "iframe", "img", "object", "embed", "form"} & set(found.tags)
    assert not [name for name, value in found.attributes if name.startswith("on")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for name, value in found.attributes if name in ("href", "src", "xlink:href"))
    script = re.search("<script>(.*?)</script>", text, flags=re.S).group(1)
    assert f"script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in text
    assert len({value for name, value in found.attributes if name == "id"}) == len([1 for name, _ in found.attributes if name == "id"])


def test_same_results_same_bytes(folder, page, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)  # keeps the times of the files, by which the newest is known
    assert write(copy, tmp_path / "again.html").read_bytes() == page.read_bytes()


def hostile(folder: Path, copy: Path) -> Path:
    names = {"TAQ": HOSTILE[0], "magnitude": HOSTILE[2], "TAQO": HOSTILE[3], "trivia_qa": HOSTILE[1]}

    def change(one):
        one["method"]["name"] = names.get(one["method"]["name"], one["method"]["name"])
        one["dataset"] = names.get(one["dataset"], one["dataset"])
        one["strata"] = {f"{HOSTILE[0]}{k}": v for k, v in one["strata"].items()}
        one["model"]["name"], one["data_note"] = HOSTILE[1] + "_x", HOSTILE[3]
        one["seconds"] = {f"_{HOSTILE[0]}": 1.0} | one["seconds"]
        one["bits"]["per_linear"] = {f"{HOSTILE[3]}.{k}": v for k, v in one["bits"]["per_linear"].items()}

    return rewritten(folder, copy, change)


def test_names_of_results_cannot_run(folder, tmp_path):
    text = write(hostile(folder, tmp_path / "bad"), tmp_path / "bad.html").read_text()
    found = Elements(text)
    assert found.tags.count("script") == 1 and "img" not in found.tags and not [n for n, _ in found.attributes if n.startswith("on")]
    assert HOSTILE[0] in "".join(found.words) and "$\\frac{1}$" in "".join(found.words), "a name must be shown as it is"


def test_a_notebooks_figure_is_quoted_too(folder, tmp_path):
    for figure in figures(load(hostile(folder, tmp_path / "bad"))[0]):
        assert "script" not in Elements(section(figure)).tags


def test_half_a_grid_says_what_is_missing(folder, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    for path in (*half.glob("*TAQ__*"), *half.glob("*mmlu_pro__fp16__*"), *half.glob("*trivia_qa__magnitude__5.5b*")):
        path.unlink()
    failed = next(half.glob("*trivia_qa__TAQO__5.5b*.json"))
    failed.write_text(json.dumps(json.loads(failed.read_text()) | {"status": "error", "error": "ran out of paper"}))
    text = write(half, tmp_path / "half.html").read_text()
    assert "ran out of paper" in text and "no result: magnitude on trivia_qa" in text and text.count("<svg ") == 10


def test_figures_that_have_nothing_to_show_say_so(folder, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in folder.glob("*trivia_qa__fp16__*"):
        shutil.copy2(path, alone)
    made = {f.title: f.lack for f in figures(load(alone)[0])}
    assert sum(lack.startswith("no data") for lack in made.values()) == 4 and made["Where did the time go?"] == ""
    text = write(alone, tmp_path / "alone.html").read_text()
    assert text.count('class="lack"') == 4 and text.count("<svg ") == 2


def test_failed_cells_alone_make_a_page_that_says_so(folder, tmp_path):
    def fail(one):
        one.update(status="error", error="no more chalk")

    text = write(rewritten(folder, tmp_path / "failed", fail), tmp_path / "failed.html").read_text()
    assert "no more chalk" in text and "<svg " not in text and "no finished results" in text and not len(tidy(load(tmp_path / "failed")))


def test_nothing_there_is_an_error_and_leaves_no_page(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for results, out, said in ((tmp_path / "empty", tmp_path / "r.html", "no data"), (tmp_path / "nowhere", tmp_path / "r.html", "does not exist"),
                               (folder, tmp_path, "name of a file"), (folder, tmp_path / "no" / "r.html", "folder that exists"),
                               (folder, tmp_path / ("r" * 300), "cannot be written")):
        with pytest.raises(UserError, match=said):
            write(results, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]
    assert figures_main([str(tmp_path / "empty"), str(tmp_path / "x.svg")]) == 2 and "no data" in capsys.readouterr().err
    assert figures_main([str(folder), str(tmp_path / "no" / "x.svg")]) == 2 and "folder that exists" in capsys.readouterr().err
    assert figures_main([]) == 2 and not (tmp_path / "x.svg").exists()


def test_one_figure_for_a_page_of_ones_own(folder, tmp_path):
    assert figures_main([str(folder), str(tmp_path / "demo.svg")]) == 0
    text = (tmp_path / "demo.svg").read_text()
    words = "".join(ElementTree.fromstring(text).itertext())
    assert len(text) < 200_000 and all(m in words for m in (*METHODS, "mmlu_pro", "at most")) and "<script" not in text


def test_parts_of_other_settings_are_told_apart(folder, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(folder, both)

    def other(one):
        one["settings"]["eval_size"] = 99

    for path in rewritten(folder, tmp_path / "other", other).glob("*"):
        shutil.copy2(path, both / f"other-{path.name}")
    for path in both.glob("other-*.json"):
        path.write_text(path.read_text().replace('"samples": "', '"samples": "other-'))
    titles = [part.title for part in load(both)]
    assert len(titles) == 2 and sorted("eval_size 99" in t for t in titles) == [False, True]
    text = write(both, tmp_path / "both.html").read_text()
    ids = [value for name, value in Elements(text).attributes if name == "id"]
    assert len(ids) == len(set(ids)) and 'id="part-2"' in text


# --- in a browser

@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; skips with a line where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
    where = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if where is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=where, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


def visit(browser, path: Path, **options):
    """Open a page; return it with what it complained of and what it asked for."""
    tab, complaints, asked = browser.new_page(viewport={"width": 1280, "height": 900}, **options), [], []
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    return tab, complaints, [url for url in asked if url != path.as_uri() and not url.startswith("data:")]


def colours(png: bytes) -> int:
    from io import BytesIO

    from PIL import Image

    return len(Image.open(BytesIO(png)).convert("RGB").getcolors(2**24))


@pytest.mark.slow
def test_a_browser_shows_it_without_a_complaint(browser, page):
    tab, complaints, asked = visit(browser, page)
    assert not complaints and not asked
    assert colours(tab.screenshot(full_page=True)) > 500
    boxes = tab.eval_on_selector_all("figure svg", "all => all.map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])")
    assert len(boxes) == 10 and all(w > 200 and h > 100 for w, h in boxes)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page must not scroll sideways"
    assert not tab.eval_on_selector_all("svg text", "all => all.filter(e => !e.getBBox().width && e.textContent.trim()).length")


@pytest.mark.slow
def test_a_click_sorts_a_table(browser, page):
    tab, complaints, _ = visit(browser, page)
    column = "[...document.querySelector('table').tBodies[0].rows].map(r => parseFloat(r.cells[1].textContent))"
    before = tab.evaluate(column)
    tab.locator("table").first.locator("th").nth(1).click()
    assert tab.evaluate(column) == sorted(before) != before
    tab.locator("table").first.locator("th").nth(1).click()
    assert tab.evaluate(column) == sorted(before, reverse=True) and not complaints


@pytest.mark.slow
def test_without_scripts_and_on_paper_it_is_whole(browser, page):
    tab, _, _ = visit(browser, page, java_script_enabled=False)
    assert tab.locator("figure svg").count() == 10 and tab.locator("details").count() >= 10
    tab.emulate_media(media="print")
    assert not tab.locator("nav").is_visible() and tab.locator("figure svg").first.is_visible() and len(tab.pdf()) > 50_000


@pytest.mark.slow
def test_hostile_names_do_nothing_in_a_browser(browser, folder, tmp_path):
    tab, complaints, asked = visit(browser, write(hostile(folder, tmp_path / "bad"), tmp_path / "bad.html"))
    assert tab.evaluate("window.ran === undefined") and not complaints and not asked


@pytest.mark.slow
def test_a_large_grid_is_small_and_opens_at_once(browser, folder, tmp_path):
    """Thirteen methods, three data sets, two budgets, 210 linears: as large as the grids of the documentation."""
    big = tmp_path / "big"
    big.mkdir()
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    rng, categories = np.random.default_rng(0), [f"category {i}" for i in range(14)]
    for path in sorted(folder.glob("*mmlu_pro__TAQ__*.json")) + sorted(folder.glob("*mmlu_pro__fp16__*.json")):
        base = json.loads(path.read_text())
        names = [f"method-{i}" for i in range(13)] if base["avg_bits"] else ["fp16"]
        for dataset, name in ((d, n) for d in ("mmlu_pro", "code_mmlu", "other") for n in names):
            fqns = [f"model.layers.{b}.{k}" for b in range(30) for k in kinds]
            stem = f"{dataset}-{name}-{base['avg_bits']}"
            probe = {f: {"scores": rng.random(64).tolist(), "positions": list(range(64)), "kept": rng.integers(0, 2, 64).tolist()} for f in fqns}
            cell = base | {"dataset": dataset, "cell": stem, "method": base["method"] | {"name": name}, "samples": f"{stem}.jsonl", "probe": probe,
                           "strata": {c: {"n": 9, "accuracy": {"value": 0.5, "low": 0.2, "high": 0.8}} for c in categories},
                           "bits": base["bits"] | {"per_linear": {f: int(b) for f, b in zip(fqns, rng.integers(2, 6, 210))}}}
            (big / f"{stem}.json").write_text(json.dumps(cell))
            shutil.copy(folder / base["samples"], big / f"{stem}.jsonl")
    made = write(big, tmp_path / "big.html")
    assert made.stat().st_size < 3e6
    tab, complaints, _ = visit(browser, made)
    assert not complaints and tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 2000
