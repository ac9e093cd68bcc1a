"""Documents that run: the example method and data set, links, and the README's commands."""

import json
import os
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from core.registry import DATASETS, SCORERS
from core.settings import SETTINGS
from evaluation.data.documents import Doc
from evaluation.grading import Grade
from harness.cli.flags import build_parser
from harness.cli.main import main
from harness.grid import Grid
from harness.presets import build_grid
from report.records import load_results, load_samples
from tests.tiny import context, tiny_model

REPO = Path(__file__).resolve().parents[1]
PAGES = [p for p in (*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), *(REPO / "datasets_local").glob("*.md"))]


FOLDERS = ("app", "benchmarks", "core", "datasets_local", "docs", "evaluation", "harness", "methods", "notebooks",
           "quantization", "report", "streams", "tests")
TESTS = {name for path in (REPO / "tests").rglob("test_*.py")
         for name in (path.stem, *re.findall(r"^def (test_\w+)", path.read_text(), re.M))}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    return re.findall(rf"```{language}\n(.*?)```", (REPO / "docs" / page).read_text(), re.S)


def small(tiny: Path, root: Path) -> list[str]:
    return ["--model", str(tiny), "--eval_size", "8", "--calib_size", "6", "--avg_bits", "4.75", "--threads", "1",
            "--quantizer", "rtn", "--device", "cpu", "--cache_dir", str(root / "cache"),
            "--results_dir", str(root / "results")]


def test_the_example_method_runs_and_keeps_the_contract(tiny_folder, tmp_path, registries):
    source = blocks("ADD_A_METHOD.md", "python")[0]
    assert len([line for line in source.splitlines() if line.strip()]) <= 45
    plugin = tmp_path / "input_energy.py"
    plugin.write_text(source)
    assert main([*small(tiny_folder, tmp_path), "--dataset", "mmlu_pro", "--plugin", str(plugin),
                 "--method", "input_energy", "input_energy[input_power=1]", "TAQ+top_fraction+rtn-float",
                 "--input_power", "3"]) == 0
    stages = {r.name: r.stages for r in load_results(tmp_path / "results")}
    assert stages["input_energy"]["scores"] != stages["input_energy[input_power=1]"]["scores"]
    spec, model = SCORERS.get("input_energy"), tiny_model("llama")
    first, second = spec.fn(context(model, spec)), spec.fn(context(model, spec, batch_tokens=1))
    assert len(first.values) == 21 and all(abs(first.values[f] / second.values[f] - 1) < 1e-3 for f in first.values)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_example_data_sets_run(tiny_folder, tmp_path, registries):
    """A choice set, and an open task with its own grade, stop texts, limit and metric, all in one file."""
    (source,) = blocks("ADD_A_DATASET.md", "python")
    (tmp_path / "my_sets.py").write_text(source)
    for name, row in zip(("my_quiz", "my_sums"), map(json.loads, blocks("ADD_A_DATASET.md", "json")), strict=True):
        (tmp_path / "data" / name).mkdir(parents=True)
        rows = [row | {"id": f"{row['id']}-{i}", "question": f"{row['question']} ({i})"} for i in range(20)]
        (tmp_path / "data" / name / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main([*small(tiny_folder, tmp_path), "--plugin", str(tmp_path / "my_sets.py"), "--method", "uniform",
                 "--dataset", "my_quiz", "my_sums", "--data_dir", str(tmp_path / "data")]) == 0
    task, doc = DATASETS.get("my_sums"), Doc("s", "q", gold="100")
    for text, answer, correct, error in ((" 12.5 * 8 = 100", "100", 1, 0), ("99.5", "99.5", 1, 0.005),
                                         ("-100", "-100", 0, 1), ("none", None, 0, 1)):
        assert task.grade(doc, text) == Grade(answer, correct, {"rel_error": error})
    results = {r.dataset: r for r in load_results(tmp_path / "results") if r.method.name == "uniform"}
    assert results["my_quiz"].metrics["accuracy"] and "rel_error" not in results["my_quiz"].metrics
    sums, samples = results["my_sums"], load_samples(results["my_sums"])
    assert sums.n == len(samples) == 8 and max(s.n_new for s in samples) == 24  # the task's limit, not the grid's
    assert sums.metrics["rel_error"].value == pytest.approx(sum(s.scores["rel_error"] for s in samples) / 8)
    assert all("\n\n" not in s.text and "Question:" not in s.text for s in samples)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_and_files_that_a_page_names_exist(page):
    text = page.read_text()
    for name in re.findall(r"\btest_\w+(?!\w*\.py)\b", text):
        assert name in TESTS, f"{page.name} names {name}, which is no test"
    for path in re.findall(rf"\b(?:{'|'.join(FOLDERS)})/[\w/]+\.(?:py|md|svg|ipynb)", text):
        assert (REPO / path).exists(), f"{page.name} names {path}, which does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_use_flags_that_exist(page):
    """Every run_taq_icml.py line of the documents parses."""
    for line in re.findall(r"python run_taq_icml\.py ([^\n`]*)", page.read_text()):
        build_parser().parse_args(line.split("#")[0].split())


@pytest.mark.parametrize("script", sorted((REPO / "scripts" / "examples").glob("*.sh")), ids=lambda p: p.name)
def test_example_scripts_ask_for_grids_that_exist(script, tmp_path):
    """What each hands to python, with flags of the user's own behind."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nshift\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    model = ["some/model"] if "MODEL" in script.read_text() else []
    told = subprocess.run([script, "DATA", *model, "--eval_size", "7", "--grad_device", "cuda:0,1",
                           "--eval_device", "cuda:0"], capture_output=True, text=True, check=True,
                          env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    args = {k: tuple(v) if isinstance(v, list) else v for k, v in
            vars(build_parser().parse_args(told.stdout.splitlines())).items() if v is not None}
    names = {f.name for f in fields(Grid)} | {s.name for s in SETTINGS} | {"conditioning"}
    grid = build_grid(args.pop("run_type"), **{k: v for k, v in args.items() if k in names})
    assert (grid.grad_device, grid.eval_device) == ("cuda:0,1", "cuda:0")
    assert grid.eval_size == 7 and "TaCQ" in grid.methods and len(grid.seeds) == 3 and "gsm8k" in grid.datasets


def test_readme_opens_with_the_two_commands():
    fenced = re.findall(r"```\w*\n(.*?)```", (REPO / "README.md").read_text(), re.S)
    commands = [line for part in fenced for line in part.splitlines() if line.startswith("make ")]
    assert [c.split("#")[0].strip() for c in commands[:2]] == ["make demo", "make test"]


def test_no_machine_paths_in_the_repository():
    for path in (*REPO.glob("*"), *(d for f in FOLDERS for d in (REPO / f).rglob("*"))):
        if path.is_file() and path.suffix in (".py", ".md", ".txt", ".toml", ".cff", ""):
            assert not re.search(r"(^|[^A-Za-z.])/(work|root|home)/", path.read_text(errors="ignore")), path


def test_the_readmes_python_lines_run(tiny_folder, tmp_path, monkeypatch, capsys):
    """On a tiny model and few documents; nothing else is changed."""
    (lines,) = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.S)
    assert len(lines.splitlines()) == 5
    small = f'avg_bits=4.75, eval_size=8, calib_size=6, max_new_tokens=4, device="cpu", cache_dir={str(tmp_path)!r}'
    here: dict = {}
    exec(lines.replace('"smollm2-135m"', repr(str(tiny_folder))).replace("avg_bits=3.25", small), here)
    assert 4.74 < here["small"].bits.average <= 4.75 and len(here["answers"].samples) == 8
    assert "LlamaForCausalLM" in capsys.readouterr().out
