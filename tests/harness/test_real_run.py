"""The real commands on the real model, a few documents each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from report.records import load_results

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.real, pytest.mark.slow]


def command(root: Path, *more: str) -> subprocess.CompletedProcess:
    flags = ["--run_type", "demo", "--threads", "1", "--device", "cpu", "--results_dir", str(root / "results"),
             "--cache_dir", str(root / "cache"), *more]
    return subprocess.run([sys.executable, "run_taq_icml.py", *flags], cwd=REPO,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900)


def test_demo_on_the_real_model_and_again_from_the_cache(real_model, tmp_path):
    flags = ("--model", str(real_model), "--eval_size", "8", "--calib_size", "6", "--method", "TAQ", "TAQO-native",
             "--quantizer", "rtn", "--avg_bits", "4.25")
    first = command(tmp_path, *flags)
    assert first.returncode == 0, first.stderr
    results = {(r.method.name, r.dataset): r for r in load_results(tmp_path / "results")}
    assert len(results) == 5 * 3
    for dataset in ("trivia_qa", "mmlu_pro", "code_mmlu"):
        full, uniform = (results[m, dataset].metrics["gold_loglik"].value for m in ("fp16", "uniform"))
        assert full > uniform, f"{dataset}: quantization to 4.25 bits did not hurt"
        common, native = (results[m, dataset].bits.average for m in ("TAQ", "TAQO-native"))
        assert 4.24 < common <= 4.25 < native
    before = {p.name: p.read_bytes() for p in (tmp_path / "results").rglob("*.json*")}
    again = command(tmp_path, *flags)
    assert again.returncode == 0 and "Loading" not in again.stderr, again.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "results").rglob("*.json*")} == before
    assert again.stdout == first.stdout


def test_real_rows_of_all_three_data_sets(real_model, shared, tmp_path):
    ran = command(tmp_path, "--model", str(real_model), "--data_dir", str(shared / "datasets"), "--eval_size", "3",
                  "--calib_size", "6", "--method", "TAQO", "--quantizer", "rtn", "--avg_bits", "4.25")
    assert ran.returncode == 0, ran.stderr
    results = load_results(tmp_path / "results")
    assert {r.dataset for r in results} == {"trivia_qa", "mmlu_pro", "code_mmlu"} and {r.n for r in results} == {3}
