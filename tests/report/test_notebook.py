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
    _, verdict, drawn, swept, missing, frame, ahead, answers = run(monkeypatch, harness_results)
    assert "keeps the most gold log-likelihood" in verdict and verdict.count("<table") == 2
    assert verdict.count("<th ") == 2 * 8, "the first frames have at most eight columns"
    assert drawn.count("<section") == 9 and "no data" not in verdict + missing + frame + ahead + answers
    assert "All categories of mmlu_pro have fewer than 10 documents" in drawn and drawn.count('class="lack"') == 1
    assert "do to gold_loglik?" in swept or "no row stands at two values" in swept or "no number" in swept
    assert all(m in verdict and m in drawn for m in METHODS) and "stored bits a weight" in missing
    assert "model_bits" in frame and "told_apart" in ahead and "magnitude" in ahead and "doc_id" in answers
    assert {p: p.read_bytes() for p in harness_results.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False], ids=["empty", "no folder"])
def test_without_results_it_says_so(monkeypatch, tmp_path, there):
    if there:
        (tmp_path / "none").mkdir()
    _, verdict, drawn, swept, _, _, ahead, answers = run(monkeypatch, tmp_path / "none")
    assert "no data: 'none' holds no finished results" in verdict and ("does not exist" in verdict) is not there
    assert not drawn and "no data: no number" in swept and "no data" in ahead and "no data" in answers


@pytest.mark.slow
def test_the_runner_chooses_runs_and_looks(monkeypatch, tiny_folder, tmp_path):
    """notebooks/taq_icml.ipynb as it is stored, on a tiny model."""
    runner = NOTEBOOK.with_name("taq_icml.ipynb")
    monkeypatch.setenv("TAQ_MODEL", str(tiny_folder))
    monkeypatch.setenv("TAQ_MORE", "--calib_size 8 --eval_size 8 --score_docs 6 --kl_docs 4 --num_fewshot 0 "
                                   "--max_new_tokens 4 --group_size 32 --device cpu --threads 1 "
                                   f"--cache_dir {tmp_path / 'cache'} --results_dir {tmp_path / 'results'}")
    book = nbformat.read(runner, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
    # the tiny model's linears hold groups of 32, whose scales cost half a bit
    book.cells[2].source = book.cells[2].source.replace("[4.25]", "[4.75]")
    where = {"metadata": {"path": str(runner.parent)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
    shown = ["".join(o.get("text", "") or o["data"].get("text/markdown", o["data"].get("text/plain", ""))
                     for o in cell.outputs if o.get("name") != "stderr") for cell in code]
    assert "nothing was computed" in shown[1] and "all cells done" in shown[2]
    assert "| TAQoS |" in shown[3] and "Bold: best at equal bits" in shown[3] and "stored bits a weight" in shown[4]


@pytest.mark.slow
def test_the_circuit_is_looked_at(monkeypatch, tiny_folder, tmp_path):
    """notebooks/circuit_analysis.ipynb as it is stored, on a tiny model and few documents."""
    analysis = NOTEBOOK.with_name("circuit_analysis.ipynb")
    for name, value in {"TAQ_MODEL": str(tiny_folder), "TAQ_CACHE": str(tmp_path / "cache"), "CIRCUIT_DOCS": "3",
                        "LIG_DOCS": "1", "TAQ_RESULTS": str(tmp_path / "results"), "CIRCUIT_SHARES": "0.1 0.25",
                        "CIRCUIT_ASKED": "8"}.items():
        monkeypatch.setenv(name, value)
    book = nbformat.read(analysis, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
    where = {"metadata": {"path": str(analysis.parent)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
    shown = ["".join(o.get("text", "") or o["data"].get("text/html", "") for o in cell.outputs
                     if o.get("name") != "stderr") for cell in code]
    assert "completeness gap at 20 steps" in shown[1] and shown[1].count("<tr>") == 8 + 2
    assert "32 heads on 3 documents" in shown[2] and "rgba(0,114,178" in shown[2] and "rgba(213,94,0" in shown[2]
    assert shown[3].count("<circle") == 2 * 32 and "heads-EAP-IG: Spearman" in shown[3]
    assert "512 neurons; share of a block's importance" in shown[4] and shown[4].count("<tr>") == 8 + 2
    assert "stored bits a weight" in shown[5] and "kept: " in shown[5]
    assert "best first ahead by" in shown[6] and "Faithfulness: (m - m0)" in shown[6]
    assert "<svg" in shown[6] and "25 %" in shown[6]
