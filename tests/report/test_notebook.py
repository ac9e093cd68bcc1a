"""The notebook is stored without outputs, opens with the verdict, runs on results alone, says what is missing."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.report.conftest import METHODS

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "results_report.ipynb"


def run(monkeypatch, results: Path) -> list[str]:
    """Execute the notebook on a folder; what each code cell showed, as text and HTML.  An exception fails the test."""
    monkeypatch.setenv("RESULTS_DIR", str(results))
    book = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
    outputs = [[o for o in c.outputs if o.get("name") != "stderr"] for c in book.cells if c.cell_type == "code"]
    return ["".join(o.get("text") or o["data"].get("text/html", o["data"].get("text/plain", "")) for o in cell)
            for cell in outputs]


def test_it_is_stored_without_outputs():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert code and all(not c.outputs and c.execution_count is None for c in code)
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.slow
def test_it_shows_the_reports_figures_and_frames(monkeypatch, harness_results):
    before = {p: p.read_bytes() for p in harness_results.rglob("*") if p.is_file()}
    _, verdict, drawn, missing, frame, ahead, answers = run(monkeypatch, harness_results)
    assert "keeps the most gold log-likelihood" in verdict and verdict.count("<table") == 2
    assert verdict.count("<th ") == 2 * 8, "the first frames have at most eight columns"
    assert drawn.count("<section") == 9 and "no data" not in verdict + missing + frame + ahead + answers
    assert "All categories of mmlu_pro have fewer than 10 documents" in drawn and drawn.count('class="lack"') == 1
    assert all(m in verdict and m in drawn for m in METHODS) and "stored bits a weight" in missing
    assert "model_bits" in frame and "told_apart" in ahead and "magnitude" in ahead and "doc_id" in answers
    assert {p: p.read_bytes() for p in harness_results.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False], ids=["empty", "no folder"])
def test_without_results_it_says_so(monkeypatch, tmp_path, there):
    if there:
        (tmp_path / "none").mkdir()
    _, verdict, drawn, _, _, ahead, answers = run(monkeypatch, tmp_path / "none")
    assert "no data: 'none' holds no finished results" in verdict and ("does not exist" in verdict) is not there
    assert not drawn and "no data" in ahead and "no data" in answers
