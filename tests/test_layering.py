"""Imports go one way: core <- streams <- quantization <- methods; core <- evaluation <- report; all <- harness <-
command lines.
"""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "streams", "quantization", "methods", "evaluation", "report", "harness", "app")
ALLOWED = {
    "core": {"core"},
    "streams": {"core", "streams"},
    "quantization": {"core", "streams", "quantization"},
    "methods": {"core", "streams", "quantization", "methods"},
    "evaluation": {"core", "evaluation"},
    "report": {"core", "evaluation", "report"},
    "harness": {"core", "streams", "quantization", "methods", "evaluation", "report", "harness"},
    "app": {"core", "report", "harness", "app"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of every import in a file, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows(package):
    files = sorted((REPO / package).rglob("*.py"))
    assert files, f"{package} is gone"
    for path in files:
        wrong = (imported(path) & {*PACKAGES, "run_taq_icml", "print_results", "tests",
                                   "benchmarks"}) - ALLOWED[package]
        may = sorted(ALLOWED[package])
        assert not wrong, f"{path.relative_to(REPO)} imports {sorted(wrong)}; {package} may import {may}"


def test_a_wrong_arrow_is_seen(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from harness.stages.cell import run_cell\n")
    assert "harness" in imported(bad)


def test_no_bare_except_and_no_pickle():
    for package in (*ALLOWED, "datasets_local"):
        for path in (REPO / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler)
                        and n.type is None], f"bare except in {path}"
            assert not imported(path) & {"pickle", "joblib",
                                         "dill"}, f"{path} imports a pickler; results are JSON and safetensors"


def test_every_grid_field_is_read():
    """A field that no code reads would be an option that does nothing (LLMC's mix_bits)."""
    from dataclasses import fields

    from harness.grid import Grid

    read = set()
    for path in (*(REPO / "harness").rglob("*.py"), REPO / "run_taq_icml.py"):
        read |= {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
                 and isinstance(n.ctx, ast.Load)}
    unread = {f.name for f in fields(Grid)} - read
    assert not unread, f"fields of Grid that nothing reads: {sorted(unread)}"
