"""Results by hand, their page, and results of the harness itself."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.digest import digest
from evaluation.statistics.summary import by_stratum, summarise
from report.page import write
from report.records import Bits, MethodFacts, ModelFacts, Result, TaskFacts, write_result
from tests.report.handmade import SETTINGS, documents

METHODS = ("TAQ", "TAQO", "TAQ-native", "magnitude", "TaCQ-weight")
BUDGETS = (4.75, 5.5)
SINGLE = ("magnitude", "TaCQ-weight")  # score single weights
LINEARS = [f"model.layers.{block}.{kind}" for block in range(6) for kind in ("self_attn.q_proj", "mlp.up_proj")]


def probe(method: str) -> dict:
    """Sampled scores by linear, with masks of kept weights where the method scores single weights."""
    rng = np.random.default_rng(len(method))
    if method in SINGLE:
        return {fqn: {"scores": rng.random(64).tolist(), "positions": list(range(64)),
                      "kept": rng.integers(0, 2, 64).tolist()} for fqn in LINEARS}
    return {fqn: {"scores": [float(rng.random())]} for fqn in LINEARS}


def put_row(folder: Path, method: str, dataset: str, budget: float | None, shift: float, **changes) -> None:
    """One cell with bits, probes, seconds and dates; ``changes`` are fields of the record."""
    samples = documents(dataset, shift, seed=len(method))
    if dataset == "trivia_qa":
        samples = [replace(sample, stratum="") for sample in samples]
    rng, full = np.random.default_rng(len(method) + 7), method == "fp16"
    levels = rng.integers(3, 7, len(LINEARS)).tolist() if method not in SINGLE else [4] * len(LINEARS)
    bits = 16.0 if full else budget - 0.004 if budget else 5.1
    result = Result(
        cell=digest([method, dataset, budget, repr(changes)]), model=ModelFacts("toy", "r", "float32", "toy"),
        method=MethodFacts(method, native=method.endswith("-native"), quantizer="rtn"), dataset=dataset,
        avg_bits=budget, seed=0, run_type="demo", settings=SETTINGS, machine="cpu", versions={"torch": "2.0"},
        status="ok", error=None, made="2026-01-01T00:00:00+00:00", n=len(samples), metrics=summarise(samples),
        strata=by_stratum(samples), scoring="letter", task=TaskFacts("choice", {"accuracy": "acc"}, 0.25),
        stages={"evaluation": "e1"}, probe={} if full else probe(method), seconds={"scores": 1.0, "samples": 2.0},
        bits=Bits(bits, bits + 1, group_size=32, per_linear={} if full else dict(zip(LINEARS, levels))))
    result = replace(result, **changes)
    write_result(folder, f"toy__{dataset}__{method}__{budget}b__{result.cell}", result, samples if result.ok else None)


def make_results(folder: Path) -> Path:
    """Eight methods on two data sets at two budgets."""
    folder.mkdir()
    for dataset in ("mmlu_pro", "trivia_qa"):
        put_row(folder, "fp16", dataset, None, 0.0)
        put_row(folder, "TAQ-native", dataset, None, -0.45)
        for budget in BUDGETS:
            for place, method in enumerate(("uniform", "random", *(m for m in METHODS if m != "TAQ-native"))):
                put_row(folder, method, dataset, budget, -(1 + place / 2) / budget)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return make_results(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture(scope="session")
def harness_results(tiny_folder, tmp_path_factory) -> Path:
    """A small grid's results as the harness itself writes them, alone in a folder."""
    from harness.cli.main import main

    root = tmp_path_factory.mktemp("harness")
    assert main(["--model", str(tiny_folder), "--dataset", "mmlu_pro", "trivia_qa", "--method", *METHODS,
                 "--avg_bits", *map(str, BUDGETS), "--quantizer", "rtn", "--calib_tokens", "150", "--eval_size", "16",
                 "--calib_size", "6", "--threads", "1", "--max_new_tokens", "3", "--device", "cpu",
                 "--cache_dir", str(root / "cache"), "--results_dir", str(root / "results")]) == 0
    shutil.rmtree(root / "cache")
    return root / "results"


@pytest.fixture(scope="session")
def page(folder, tmp_path_factory) -> Path:
    return write(folder, tmp_path_factory.mktemp("page") / "report.html")


def rewritten(folder: Path, copy: Path, change) -> Path:
    """A copy of the results in which ``change(cell)`` has edited every summary."""
    shutil.copytree(folder, copy)
    for path in copy.glob("*.json"):
        cell = json.loads(path.read_text())
        change(cell)
        path.write_text(json.dumps(cell))
    return copy


HOSTILE = ("<script>window.ran=1</script>", "<img src=x onerror=window.ran=1>", "\"'><b>$\\frac{1}$\u0007",
           "</text></svg><script>window.ran=1</script>", 'x" fill="var(--paper)')


def hostile(folder: Path, copy: Path) -> Path:
    """The results with names that want to run."""
    names = {"TAQ": HOSTILE[0], "magnitude": HOSTILE[2], "TAQO": HOSTILE[3], "trivia_qa": HOSTILE[1],
             "TaCQ-weight": HOSTILE[4]}

    def change(one):
        one["method"]["name"] = names.get(one["method"]["name"], one["method"]["name"])
        one["dataset"] = names.get(one["dataset"], one["dataset"])
        one["strata"] = {f"{HOSTILE[0]}{k}": v for k, v in one["strata"].items()}
        one["model"]["name"], one["data_note"] = HOSTILE[1] + "_x", HOSTILE[3]
        one["seconds"] = {f"_{HOSTILE[0]}": 1.0} | one["seconds"]
        one["bits"]["per_linear"] = {f"{HOSTILE[3]}.{k}": v for k, v in one["bits"]["per_linear"].items()}
        one["settings"] |= {HOSTILE[0]: HOSTILE[3]}
        one["versions"], one["machine"], one["made"] = {HOSTILE[0]: HOSTILE[1]}, HOSTILE[0], HOSTILE[3]

    return rewritten(folder, copy, change)
