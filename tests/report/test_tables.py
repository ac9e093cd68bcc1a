"""Tables come from the results folder alone; what is missing is said."""

import io
import json
import shutil

import pytest
from rich.console import Console

from core.errors import UserError
from harness.cli.main import main
from print_results import main as print_main
from report.tables.tables import require_rows, tables
from report.text.lines import verdict
from report.text.numbers import mean_sd
from report.text.render import FORMATS, sheets_of, text
from report.text.sheets import overview
from report.text.terminal import show


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """Results of a small grid at two budgets and two seeds, alone in a folder."""
    root = tmp_path_factory.mktemp("tables")
    assert main(["--model", str(tiny_folder), "--dataset", "mmlu_pro", "trivia_qa", "--method", "TAQ-native",
                 "--avg_bits", "4.75", "5.5", "--seeds", "0", "1", "--quantizer", "gptq", "--calib_tokens", "150",
                 "--eval_size", "16", "--calib_size", "6", "--threads", "1", "--max_new_tokens", "3", "--device", "cpu",
                 "--cache_dir", str(root / "cache"), "--results_dir", str(root / "results")]) == 0
    shutil.rmtree(root / "cache")
    return root / "results"


def test_one_table_a_budget_with_the_unbudgeted_rows_in_both(folder):
    found = tables(folder)
    assert ["at most 4.75" in found[0].title, "at most 5.5" in found[1].title] == [True, True]
    for table in found:
        methods = overview(table)["method"].tolist()
        assert methods[0] == "fp16" and methods[1].startswith("uniform")
        assert any(method.startswith("TAQ-native") for method in methods)
        assert "random (2 seeds)" in methods
        fp16 = table.frame[table.frame["method"] == "fp16"]
        assert fp16["d_accuracy"].isna().all() and (fp16["bits"] == fp16["bits"].iloc[0]).all()
        assert table.frame.loc[table.frame["method"] == "uniform", "d_loglik"].notna().all()
        assert verdict(table)


def test_accuracy_is_recomputed_from_the_documents(folder):
    for path in folder.glob("*.json"):
        result = json.loads(path.read_text())
        lines = [json.loads(line) for line in (folder / result["samples"]).read_text().splitlines()]
        assert result["metrics"]["accuracy"]["value"] == pytest.approx(sum(s["correct"] for s in lines) / len(lines))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(folder, kind, capsys):
    assert print_main(["--results_dir", str(folder), "--format", kind, "--details"]) == 0
    out = capsys.readouterr().out
    assert "uniform" in out and ("ΔLL" in out or kind in ("csv", "json", "latex"))
    if kind == "latex":
        assert out.count(r"\begin{tabular}") == sum(len(sheets_of(t, True)) for t in tables(folder))
        assert r"$\Delta$LL" in out and r"mmlu\_pro" in out
    if kind == "csv":
        assert len(out.splitlines()) == 1 + sum(len(t.frame) for t in tables(folder))
    if kind == "json":
        assert [len(t["rows"]) for t in json.loads(out)["tables"]] == [len(t.frame) for t in tables(folder)]


def test_terminal_table_shows_no_ellipsis(folder):
    out = io.StringIO()
    show(tables(folder), Console(file=out, width=140), details=True)
    assert "…" not in out.getvalue()


def test_a_narrow_terminal_gets_more_tables_and_no_broken_cell(folder):
    """At 100 columns no line is longer and every cell stands whole on a line of its table."""
    out = io.StringIO()
    show(tables(folder), Console(file=out, width=100), details=True)
    printed = out.getvalue().splitlines()
    assert max(map(len, printed)) <= 100 and sum("(continued)" in line for line in printed) > 0
    rows = [line for line in printed if line.startswith("│")]
    for table in tables(folder):
        for part in sheets_of(table, True):
            for name in part.frame.columns:
                assert all(any(f" {cell}" in row for row in rows) for cell in part.frame[name])


def test_tampered_or_foreign_files_are_named(folder, tmp_path):
    copy = tmp_path / "r"
    shutil.copytree(folder, copy)
    lines = next(copy.glob("*fp16*.jsonl"))
    lines.write_text(lines.read_text().replace('"correct":0.0', '"correct":1.0', 1))
    with pytest.raises(UserError, match="does not match its summary"):
        tables(copy)
    (copy / "note.json").write_text("{}")
    with pytest.raises(UserError, match=r"note\.json is not a result"):
        tables(copy)
    with pytest.raises(UserError, match="does not exist"):
        tables(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data"):
        require_rows(tables(tmp_path / "empty"), tmp_path / "empty")


def test_markdown_holds_notes_and_legend(folder):
    out = text(tables(folder), "markdown")
    assert "stored bits a weight over the quantized linears" in out and out.startswith("### tiny-llama")


def test_several_seeds_are_mean_and_sample_deviation(folder):
    import numpy as np
    import pandas as pd

    table = tables(folder)[0]
    cells = table.frame[(table.frame["method"] == "random") & (table.frame["dataset"] == "trivia_qa")]
    row = overview(table).set_index("method").loc["random (2 seeds)"]
    assert row["trivia_qa LL"] == f"{np.mean(cells['loglik']):.2f} sd {np.std(cells['loglik'], ddof=1):.2f}"
    assert mean_sd(pd.Series([1.0, 2.0, 3.0]), lambda v: f"{v:.2f}") == "2.00 sd 1.00"
    assert mean_sd(pd.Series([None]), str) == "-"


def test_each_seed_is_compared_with_uniform_of_its_own_seed(folder):
    """The solver calibrates on the seed's documents, so the control must too."""
    table = tables(folder)[0]
    cells = table.frame[table.frame["dataset"] == "mmlu_pro"].set_index(["method", "seed"])
    for seed in (0, 1):
        lead = cells.loc[("random", seed), "loglik"] - cells.loc[("uniform", seed), "loglik"]
        assert cells.loc[("random", seed), "u_loglik"] == pytest.approx(lead, abs=1e-9)
