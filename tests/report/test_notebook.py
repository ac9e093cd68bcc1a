"""The notebook is stored without outputs, runs on a results folder alone, and says what is missing."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.report.test_report import METHODS, tiny_results

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "results_report.ipynb"


def run(monkeypatch, results: Path) -> list[str]:
    """Execute the notebook on a folder; returns what each code cell showed, as text and HTML. An exception in a cell fails the test."""
    monkeypatch.setenv("RESULTS_DIR", str(results))
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [[o for o in c.outputs if o.get("name") != "stderr"] for c in book.cells if c.cell_type == "code"]
    return ["".join(o.get("text") or o["data"].get("text/html", o["data"].get("text/plain", "")) for o in cell) for cell in outputs]


def test_it_is_stored_without_outputs():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert code and all(not c.outputs and c.execution_count is None for c in code)
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.slow
def test_it_shows_the_reports_figures_and_frames(monkeypatch, tiny_folder, tmp_path):
    results = tiny_results(tiny_folder, tmp_path)
    before = {p: p.read_bytes() for p in results.iterdir()}
    _, frame, missing, drawn, ahead, answers = run(monkeypatch, results)
    assert drawn.count("<svg ") == 10 and "no data" not in frame + missing + drawn + ahead + answers
    assert all(m in frame and m in drawn for m in METHODS) and "stored bits a weight" in missing
    assert "told_apart" in ahead and "magnitude" in ahead and "doc_id" in answers
    assert {p: p.read_bytes() for p in results.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False], ids=["empty", "no folder"])
def test_without_results_it_says_so(monkeypatch, tmp_path, there):
    if there:
        (tmp_path / "none").mkdir()
    _, frame, _, drawn, ahead, answers = run(monkeypatch, tmp_path / "none")
    assert "no data: 'none' holds no finished results" in frame and ("does not exist" in frame) is not there
    assert not drawn and "no data" in ahead and "no data" in answers
