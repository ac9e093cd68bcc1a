"""Documents that run: the example method and data set, links, and the README's commands."""

import json
import re
from pathlib import Path

import pytest

from core.registry import DATASETS, METHODS, SCORERS
from harness.cli.flags import build_parser
from harness.cli.main import main
from tests.tiny import context, tiny_model

REPO = Path(__file__).resolve().parents[1]
PAGES = [p for p in (*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), *(REPO / "datasets_local").glob("*.md"))]


def block(page: str, language: str) -> str:
    """The first fenced block of a language in a page."""
    return re.search(rf"```{language}\n(.*?)```", (REPO / "docs" / page).read_text(), re.S).group(1)


def small(tiny: Path, root: Path) -> list[str]:
    return ["--model", str(tiny), "--eval_size", "8", "--calib_size", "4", "--avg_bits", "4.75", "--threads", "1", "--device", "cpu",
            "--cache_dir", str(root / "cache"), "--results_dir", str(root / "results")]


def test_the_example_method_runs_and_keeps_the_contract(tiny_folder, tmp_path):
    source = block("ADD_A_METHOD.md", "python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 45
    plugin = tmp_path / "input_energy.py"
    plugin.write_text(source)
    try:
        assert main([*small(tiny_folder, tmp_path), "--dataset", "mmlu_pro", "--plugin", str(plugin),
                     "--method", "input_energy", "TAQ+top_fraction+rtn-float"]) == 0
        spec, model = SCORERS.get("input_energy"), tiny_model("llama")
        first, second = spec.fn(context(model, spec)), spec.fn(context(model, spec, batch_tokens=1))
        assert len(first.values) == 21 and all(abs(first.values[f] / second.values[f] - 1) < 1e-3 for f in first.values)
        assert not any(m._forward_pre_hooks for m in model.modules())
    finally:
        METHODS._items.pop("input_energy", None), SCORERS._items.pop("input_energy", None)


def test_the_example_data_set_runs(tiny_folder, tmp_path):
    plugin = tmp_path / "my_quiz.py"
    plugin.write_text(block("ADD_A_DATASET.md", "python"))
    row = json.loads(block("ADD_A_DATASET.md", "json"))
    data = tmp_path / "data" / "my_quiz"
    data.mkdir(parents=True)
    lines = [json.dumps(row | {"id": f"q{i}", "question": f"{row['question']} ({i})"}) for i in range(20)]
    (data / "test.jsonl").write_text("\n".join(lines) + "\n")
    try:
        assert main([*small(tiny_folder, tmp_path), "--plugin", str(plugin), "--dataset", "my_quiz", "--data_dir", str(tmp_path / "data")]) == 0
    finally:
        DATASETS._items.pop("my_quiz", None)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_use_flags_that_exist(page):
    """Every run_taq_icml.py line of the documents parses."""
    for line in re.findall(r"python run_taq_icml\.py ([^\n`]*)", page.read_text()):
        build_parser().parse_args(line.split("#")[0].split())


def test_readme_opens_with_the_two_commands():
    fenced = re.findall(r"```\w*\n(.*?)```", (REPO / "README.md").read_text(), re.S)
    commands = [line for part in fenced for line in part.splitlines() if line.startswith("make ")]
    assert [c.split("#")[0].strip() for c in commands[:2]] == ["make demo", "make test"]


def test_no_machine_paths_in_the_repository():
    folders = ("core", "docs", "evaluation", "harness", "methods", "quantization", "benchmarks")
    for path in (*REPO.glob("*"), *(d for f in folders for d in (REPO / f).rglob("*"))):
        if path.is_file() and path.suffix in (".py", ".md", ".txt", ".toml", ".cff", ""):
            assert not re.search(r"(^|[^A-Za-z.])/(work|root|home)/", path.read_text(errors="ignore")), path
