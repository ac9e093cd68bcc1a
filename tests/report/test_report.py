"""The report page: the answer first, every figure with its numbers, nothing that runs or loads, gaps are said."""

import hashlib
import json
import re
import shutil
from base64 import b64encode
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from core.errors import UserError
from report.figures.build import figures
from report.figures.forest import main as draw
from report.figures.frames import load, tidy
from report.figures.style import DARK, LIGHT
from report.page import LEGENDS, section, write
from report.records import TaskFacts
from tests.report.conftest import HOSTILE, METHODS, hostile, put_row, rewritten
from tests.report.handmade import documents, put

FIGURES = 2 + 1 + 2 + 2 + 2 + 1  # rows at two budgets; bits; maps, agreement and categories at two budgets; time


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


def sections(text: str, part: str = "part-1") -> dict[str, str]:
    """The page's sections of figures by key."""
    every = re.findall(rf'<section id="{part}-([a-z]+(?:-\d)*)">(.*?)</section>', text, flags=re.S)
    return {key: of for key, of in every if key not in ("tables", "settings")}


# --- what it holds

def test_every_figure_has_its_numbers_and_how_to_read_it(page):
    text = page.read_text()
    titles = [re.search("<h3>(.*?)</h3>", s).group(1) for s in sections(text).values()]
    assert len(set(titles)) == len(titles) == FIGURES, titles
    for part in sections(text).values():
        drawings = re.findall("<svg .*?</svg>", part, flags=re.S)
        words = "".join("".join(ElementTree.fromstring(d).itertext()) for d in drawings)
        assert "magnitude" in words + part[part.index("</figure>") - 3000:part.index("</figure>")]
        assert "trivia_qa" in words or "Which kinds" in part, "methods and data sets are named in the drawing"
        assert 'class="how"' in part and "<table" in part[part.index("<details"):] and 'class="lack"' not in part
        labels = [ElementTree.fromstring(d).attrib for d in drawings]
        assert all(a.get("aria-label") if a.get("role") == "img" else a.get("aria-hidden") for a in labels)
    for method in (*METHODS, "fp16", "uniform", "random"):
        assert text.count(f">{method}<") >= 3
    assert "incomplete" not in text


def test_the_answer_stands_first(page):
    text = page.read_text()
    marks = ('class="card"', 'id="part-1-rows-0"', 'id="part-1-tables"', 'id="part-1-bits"')
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places) and text.count('class="card"') == 4  # two data sets at two budgets
    assert text.count('class="winner"') == 4 and "nats a token against full precision" in text
    assert "a control wins" in text


def test_legends_are_said_once(page):
    text = unescape(page.read_text())
    assert all(text.count(legend) == 1 for legend in LEGENDS)
    hows = [re.search('<p class="how">(.*?)</p>', s).group(1) for s in sections(text).values()]
    assert hows[1] == f"To be read as “{re.search('<h3>(.*?)</h3>', sections(text)['rows-0']).group(1)}”"


def test_the_numbers_are_the_results(folder, page):
    """The page's rows hold the accuracies of the summaries."""
    shown = sections(page.read_text())["rows-0"]
    for result in (json.loads(p.read_text()) for p in folder.glob("*.json")):
        if result["method"]["name"] == "magnitude" and result["avg_bits"] == 4.75:
            value = f"{result['metrics']['accuracy']['value']:.5g}"
            cells = r"(<td>[^<]*</td>\s*){3}"
            assert re.search(rf"<td>{result['dataset']}</td>\s*<td>magnitude</td>\s*{cells}<td>{value}</td>", shown)


def test_the_page_loads_nothing_and_runs_its_own_script_alone(page):
    text = page.read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert all(a.startswith("http://www.w3.org/") for a in addresses), addresses
    elements = Elements(text)
    loading = {"link", "iframe", "img", "object", "embed", "form"}
    assert elements.tags.count("script") == 1 and not loading & set(elements.tags)
    assert not [name for name, value in elements.attributes if name.startswith("on")]
    assert all(value.startswith("#") for name, value in elements.attributes if name in ("href", "src", "xlink:href"))
    script = re.search("<script>(.*?)</script>", text, flags=re.S).group(1)
    assert f"script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in text
    ids = [value for name, value in elements.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {f"#{name}" for name in ids} >= {value for name, value in elements.attributes if name == "href"}


def test_same_results_same_bytes(folder, page, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    assert write(copy, tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_drawings_name_no_colour_of_ink_or_paper(page):
    """So that one drawing serves light pages, dark ones and paper; the page sets both palettes, print is light."""
    text = page.read_text()
    assert all(f"--{name}:{value}" in text for palette in (LIGHT, DARK) for name, value in palette.items())
    assert "@media screen and (prefers-color-scheme: dark)" in text and LIGHT.keys() == DARK.keys()
    fills = set(re.findall(r'(?:fill|stroke)="([^"]*)"', "".join(re.findall("<svg.*?</svg>", text, flags=re.S))))
    assert not fills & {"black", "white", "#000000", "#ffffff", "#fff", "#000"} and "currentColor" in fills


def test_categories_of_few_documents_are_named_not_shown(folder, tmp_path):
    def shrink(one):
        for name, of in one["strata"].items():
            of["n"] = 9 if name == "part 1" else 10

    shown = sections(write(rewritten(folder, tmp_path / "few", shrink), tmp_path / "few.html").read_text())
    assert "1 categories under 10 documents are not shown: part 1." in shown["kinds-0-1"]
    assert "<td>part 1</td>" not in shown["kinds-0-1"] and "<td>part 2</td>" in shown["kinds-0-1"]

    def shrink_all(one):
        for of in one["strata"].values():
            of["n"] = 9

    shown = sections(write(rewritten(folder, tmp_path / "none", shrink_all), tmp_path / "none.html").read_text())
    assert "All categories of mmlu_pro have fewer than 10 documents." in shown["kinds"] and "<svg" not in shown["kinds"]


def test_a_page_of_what_the_harness_writes(harness_results, tmp_path):
    text = unescape(write(harness_results, tmp_path / "real.html").read_text())
    shown = sections(text)
    assert list(shown) == ["rows-0", "rows-1", "bits", "map-0", "map-1", "agree-0", "agree-1", "kinds", "time"]
    assert [key for key, of in shown.items() if 'class="lack"' in of] == ["kinds"], "16 documents: small categories"
    rows = re.findall(r"<td>(\w+)</td><td>(magnitude)</td><td>([\d.]+)</td>(?:<td>\d+</td>){2}<td>([\d.]*)</td>",
                      shown["rows-0"])
    expected = {}
    for result in (json.loads(p.read_text()) for p in harness_results.glob("*.json")):
        if result["method"]["name"] == "magnitude" and result["avg_bits"] == 4.75:
            expected[result["dataset"]] = f"{result['metrics']['accuracy']['value']:.5g}"
    assert {dataset: accuracy for dataset, _, _, accuracy in rows} == expected and len(expected) == 2
    assert "--eval_size 16" in text and "28 finished, 0 failed" in text


def test_an_open_task_with_a_metric_of_its_own(tmp_path):
    """No right and wrong: figures and cards show the task's metric by its name."""
    for method, bits, level in (("fp16", 16.0, 0.9), ("uniform", 4.249, 0.3), ("TAQ", 4.249, 0.6)):
        rng = np.random.default_rng(len(method))
        samples = [replace(s, correct=None, choice_logprobs=None, stratum="",
                           scores={"rouge": float(np.clip(level + rng.normal(0, 0.05), 0, 1))})
                   for s in documents("d", level - 1, 0)]
        put(tmp_path, method, bits, 0.0, dataset="d", budget=None if method == "fp16" else 4.25, samples=samples,
            task=TaskFacts("generate", {"rouge": "ROUGE"}))
    text = unescape(write(tmp_path, tmp_path / "own.html").read_text())
    assert re.search(r"Highest ROUGE: TAQ with 0\.[56]", text) and ">ROUGE</text>" in sections(text)["rows-0"]
    assert "accuracy (%)" not in "".join(re.findall("<svg .*?</svg>", text, flags=re.S))


# --- settings

def test_a_settings_box_says_how_it_was_made(page):
    text = unescape(page.read_text())
    box = re.sub(r"<[^>]+>", "|", text[text.index('id="part-1-settings"'):text.index('id="words"')])
    for words in ("--quantizer rtn", "--tolerance 0.01", "--data_source embedded", "toy, float32, revision r", "cpu",
                  "torch 2.0", "2026-01-01T00:00:00+00:00", "4.75, 5.5", "28 finished, 0 failed", *METHODS):
        assert words in box, words
    assert "<mark>" not in text, "there is one part, so nothing to tell apart"


def test_rows_of_several_versions_and_no_dates_are_said(folder, tmp_path):
    def older(one):
        if one["method"]["name"] == "TAQ":
            one["versions"], one["made"] = {"torch": "1.9"}, ""

    text = write(rewritten(folder, tmp_path / "mixed", older), tmp_path / "mixed.html").read_text()
    assert "torch 1.9 (4 results) or 2.0 (24 results)" in text and "(4 results without a date)" in text


def test_parts_of_other_settings_are_told_apart(folder, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(folder, both)

    def other(one):
        one["settings"]["eval_size"], one["settings"]["quantizer"] = 99, "gptq"

    for path in rewritten(folder, tmp_path / "other", other).glob("*"):
        shutil.copy2(path, both / f"other-{path.name}")
    for path in both.glob("other-*.json"):
        path.write_text(path.read_text().replace('"samples": "', '"samples": "other-'))
    titles = [part.title for part in load(both)]
    assert len(titles) == 2 and sorted("eval_size 99" in t for t in titles) == [False, True]
    text = write(both, tmp_path / "both.html").read_text()
    ids = [value for name, value in Elements(text).attributes if name == "id"]
    assert len(ids) == len(set(ids)) and 'id="part-2"' in text
    assert {"--eval_size 99", "--quantizer gptq", "--quantizer rtn"} == set(re.findall("<mark>(.*?)</mark>", text))


# --- what is hostile, missing or nothing at all

def test_names_of_results_cannot_run(folder, tmp_path):
    text = write(hostile(folder, tmp_path / "bad"), tmp_path / "bad.html").read_text()
    elements = Elements(text)
    assert elements.tags.count("script") == 1 and "img" not in elements.tags
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    words = "".join(elements.words)
    assert HOSTILE[0] in words and "$\\frac{1}$" in words and HOSTILE[4] in words, "a name must be shown as it is"
    for drawing in re.findall("<svg .*?</svg>", text, flags=re.S):
        ElementTree.fromstring(drawing)


def test_a_notebooks_figure_is_quoted_too_and_brings_its_style(folder, tmp_path):
    for figure in figures(load(hostile(folder, tmp_path / "bad"))[0]):
        text = section(figure)
        assert "script" not in Elements(text).tags and ".chart{" in text and f"--ink:{LIGHT['ink']}" in text


def test_half_a_grid_says_what_is_missing(folder, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    for path in (*half.glob("*TAQ__*"), *half.glob("*mmlu_pro__fp16__*"), *half.glob("*trivia_qa__magnitude__5.5b*")):
        path.unlink()
    failed = next(half.glob("*trivia_qa__TAQO__5.5b*.json"))
    broken = {"status": "error", "error": "ran out of paper"}
    failed.write_text(json.dumps(json.loads(failed.read_text()) | broken))
    text = write(half, tmp_path / "half.html").read_text()
    assert "ran out of paper" in text and "no result: magnitude on trivia_qa" in text
    assert "3 cells of this table have no result" in text  # fp16 on one data set, magnitude on another, the failed one
    assert sum("<svg " in part for part in sections(text).values()) == FIGURES


def test_figures_that_have_nothing_to_show_say_so(folder, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in folder.glob("*trivia_qa__fp16__*"):
        shutil.copy2(path, alone)
    lacks = {f.title: f.lack for f in figures(load(alone)[0])}
    assert sum(lack.startswith("no data") for lack in lacks.values()) == 4 and lacks["Where did the time go?"] == ""
    text = write(alone, tmp_path / "alone.html").read_text()
    assert text.count('class="lack"') == 4 and sum("<svg " in part for part in sections(text).values()) == 2
    assert "nothing is ranked" in text


def test_failed_cells_alone_make_a_page_that_says_so(folder, tmp_path):
    def fail(one):
        one.update(status="error", error="no more chalk")

    text = write(rewritten(folder, tmp_path / "failed", fail), tmp_path / "failed.html").read_text()
    assert "no more chalk" in text and "<svg " not in text and "no finished results" in text
    assert "0 finished, 28 failed" in text and not len(tidy(load(tmp_path / "failed")))


def test_nothing_there_is_an_error_and_leaves_no_page(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for results, out, said in (
            (tmp_path / "empty", tmp_path / "r.html", "no data"),
            (tmp_path / "nowhere", tmp_path / "r.html", "does not exist"),
            (folder, tmp_path, "name of a file"), (folder, tmp_path / "no" / "r.html", "folder that exists"),
            (folder, tmp_path / ("r" * 300), "cannot be written")):
        with pytest.raises(UserError, match=said):
            write(results, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]
    assert draw([str(tmp_path / "empty"), str(tmp_path / "x.svg")]) == 2 and "no data" in capsys.readouterr().err
    assert draw([str(folder), str(tmp_path / "no" / "x.svg")]) == 2 and "folder that exists" in capsys.readouterr().err
    assert draw([]) == 2 and not (tmp_path / "x.svg").exists()


def test_one_figure_for_a_page_of_ones_own(folder, tmp_path):
    assert draw([str(folder), str(tmp_path / "demo.svg")]) == 0
    text = (tmp_path / "demo.svg").read_text()
    words = "".join(ElementTree.fromstring(text).itertext())
    assert len(text) < 200_000 and all(m in words for m in (*METHODS, "mmlu_pro", "at most")) and "<script" not in text
    assert "var(" not in text and "currentColor" not in text, "a file of its own has all its colours"
    assert f'fill="{LIGHT["paper"]}" d="M0 0H' in text, "and its own paper, for it stands on pages of any colour"


def test_the_best_rows_name_has_room_in_bold(folder, tmp_path):
    """Whichever row that is: of those that may be the best, all names are as wide, and none is wider."""
    def rename(one):
        name = one["method"]["name"]
        one["method"]["name"] = {"fp16": name, "TAQ-native": "n"}.get(name, f"WIDE-METHOD-{name[-1].upper()}")

    assert draw([str(rewritten(folder, tmp_path / "wide", rename)), str(tmp_path / "x.svg")]) == 0
    names = [text for text in ElementTree.fromstring((tmp_path / "x.svg").read_text()).itertext() if "WID" in text]
    assert names and not any("…" in name for name in names)


def test_names_in_a_file_of_its_own_stay_as_they_are(folder, tmp_path):
    def rename(one):
        one["method"]["name"] = one["method"]["name"].replace("TAQO", "currentColor var(--x)")

    copy = rewritten(folder, tmp_path / "named", rename)
    assert draw([str(copy), str(tmp_path / "x.svg")]) == 0
    assert "currentColor var(--x)" in "".join(ElementTree.fromstring((tmp_path / "x.svg").read_text()).itertext())


def test_numbers_of_unlikely_size_do_not_break_a_drawing(folder, tmp_path):
    copy = tmp_path / "odd"
    shutil.copytree(folder, copy)
    put_row(copy, "odd", "mmlu_pro", 4.75, -1e120, seconds={"scores": 1e300, "samples": 1.0}, probe={})
    drawings = re.findall("<svg .*?</svg>", write(copy, tmp_path / "odd.html").read_text(), flags=re.S)
    for drawing in map(ElementTree.fromstring, drawings):
        steps = "".join(e.attrib.get("d", "") for e in drawing.iter())
        assert "nan" not in steps and "inf" not in steps and not re.search(r"\d{7}", steps)


def test_the_results_that_are_given_are_shown(folder, tmp_path):
    from report.records import load_results

    some = [r for r in load_results(Path(folder)) if r.avg_bits in (None, 4.75)]
    assert "5.5 stored bits" not in write(folder, tmp_path / "some.html", some).read_text()
