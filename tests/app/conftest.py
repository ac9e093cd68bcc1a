"""A small results folder that the harness itself made of a tiny model, and pages as Streamlit's own tests run them."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="needs streamlit (requirements-app.txt)")

from streamlit.testing.v1 import AppTest

METHODS = ("TaCQ", "TAQ")
SIZES = {"calib_size": 8, "eval_size": 8}


@pytest.fixture(scope="session")
def small(tiny_folder, tmp_path_factory) -> dict:
    """Folders: "results" with twelve cells of two data sets and a measured linear, "cache", "model"."""
    from harness.jobs.launch import run_local
    from harness.linear import measure
    from harness.presets import build_grid
    from report.measured import asked_of, write_record
    from tests.harness.bench import silent

    root = tmp_path_factory.mktemp("app")
    folders = {"results": str(root / "results"), "cache": str(root / "cache"), "model": str(tiny_folder)}
    grid = build_grid("demo", models=(str(tiny_folder),), datasets=("trivia_qa", "mmlu_pro"), methods=METHODS,
                      avg_bits=(4.75,), quantizer="rtn", cache_dir=folders["cache"], device="cpu",
                      results_dir=folders["results"], **SIZES)
    assert all(result.ok for result in run_local(grid, None, silent(), []))
    asked = asked_of({"model": str(tiny_folder), "dataset": "trivia_qa", "avg_bits": 4.75,
                      "linear": "layers.1.mlp.down_proj", **SIZES})
    write_record(folders["results"], measure(asked, cache_dir=folders["cache"], device="cpu"))
    return folders


@pytest.fixture
def visit(small, monkeypatch):
    """Run a page: ``visit("live", results=FOLDER, **query)``."""
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", "--results_dir", small["results"], "--cache_dir",
                                      small["cache"]])

    def run(page: str, results: Path | str | None = None, **query) -> AppTest:
        test = AppTest.from_string(f"from app.views import {page}\nfrom app.show import one_sentence\n"
                                   f"with one_sentence():\n    {page}.page()\n", default_timeout=60)
        for name, value in (query | ({"results": str(results)} if results else {})).items():
            test.query_params[name] = value
        test.run()
        assert not test.exception, [(e.message, e.stack_trace) for e in test.exception]
        return test

    return run


def words(test: AppTest) -> str:
    """All that a page says."""
    kinds = (test.markdown, test.caption, test.header, test.title, test.error, test.warning, test.info, test.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def drawn(test: AppTest) -> str:
    """The HTML of the report's components on a page."""
    return "\n".join(json.loads(element.proto.json) for element in test.get("bidi_component"))
