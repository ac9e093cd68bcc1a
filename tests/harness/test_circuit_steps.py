"""Calibrate, quantize, evaluate: three scripts whose checkpoint answers as the grid's row does, byte for byte."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from core.errors import UserError
from harness.api import evaluate
from harness.api import quantize as quantize_row
from harness.circuit import CircuitSettings, read_settings
from harness.cli.main import main as grid
from quantization.inference import CircuitAwareLinear
from quantization.packing.split import load_split
from scripts import calibrate, quantize
from scripts import evaluate as asking
from tests.tiny import save_tiny

pytest.importorskip("bitsandbytes")
REPO = Path(__file__).resolve().parents[2]
CONFIG = """
dataset: mmlu_pro
fp16_ratio: 0.3
calibration: {n_steps: 3, documents: 4}
"""


@pytest.fixture(scope="module")
def tiny_folder(tiny_folder, tmp_path_factory):
    """The tiny model with two tokens that end an answer, as instruct models have."""
    folder = tmp_path_factory.mktemp("ends") / "tiny-llama"
    shutil.copytree(tiny_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5], "pad_token_id": 0}))
    return folder


@pytest.fixture(scope="module")
def steps(tiny_folder, tmp_path_factory):
    """The first two steps, done."""
    root = tmp_path_factory.mktemp("circuit")
    (root / "own.yaml").write_text(CONFIG)
    where = ["--cache_dir", str(root / "cache"), "--device", "cpu", "--threads", "1"]
    assert calibrate.main(["--model", str(tiny_folder), "--config", str(root / "own.yaml"), "--output",
                           str(root / "scores.safetensors"), "--eval_size", "12", *where]) == 0
    assert quantize.main(["--checkpoint", str(tiny_folder), "--scores", str(root / "scores.safetensors"), "--config",
                          str(root / "own.yaml"), "--output", str(root / "small"), *where]) == 0
    return root


def test_the_checkpoint_answers_as_the_grids_row(steps, tiny_folder, capsys):
    asked = dict(eval_size=12, threads=1, device="cpu", cache_dir=str(steps / "cache"))
    method = "circuit-native[fp16_ratio=0.3,circuit_docs=4,ig_steps=3]"
    row = quantize_row(str(tiny_folder), method, "mmlu_pro", **asked)
    want = evaluate(row)
    found = evaluate(str(steps / "small"), "mmlu_pro", **asked)
    assert [s.as_plain() for s in found.samples] == [s.as_plain() for s in want.samples]
    # and what it writes, to the same end tokens
    open_row = quantize_row(str(tiny_folder), method.replace("]", ",calib_dataset=mmlu_pro]"), "trivia_qa", **asked)
    written = evaluate(str(steps / "small"), "trivia_qa", **asked)
    assert [s.as_plain() for s in written.samples] == [s.as_plain() for s in evaluate(open_row).samples]
    assert load_split(steps / "small").generation_config.eos_token_id == [2, 5]
    told = json.loads((steps / "small" / "circuit.json").read_text())
    assert told["avg_bits"] == row.bits.average and told["fp16_ratio"] == 0.3
    capsys.readouterr()
    assert asking.main(["--model", str(steps / "small"), "--tasks", "mmlu_pro", "--threads", "1", "--device", "cpu",
                        "--cache_dir", str(steps / "cache")]) == 0
    said = capsys.readouterr().out
    assert f"{want.metrics['accuracy'].value:.4f}" in said and f"{want.metrics['gold_loglik'].value:.4f}" in said


def test_two_branches_and_dense_are_one_model(steps):
    split, dense = load_split(steps / "small"), load_split(steps / "small", dense=True)
    kinds = [type(m).__name__ for m in split.modules() if isinstance(m, CircuitAwareLinear)]
    assert len(kinds) == 56 and not any(isinstance(m, CircuitAwareLinear) for m in dense.modules())
    ids = torch.arange(3, 20)[None]
    for fqn, module in split.named_modules():
        if isinstance(module, CircuitAwareLinear):
            assert torch.equal(module.weight(), dense.get_submodule(fqn).weight)
    with torch.no_grad():
        a, b = (model.float()(ids).logits for model in (split, dense))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_grid_does_not_quantize_it_again(steps, tmp_path, capsys):
    assert grid(["--model", str(steps / "small"), "--method", "TAQ", "--dataset", "mmlu_pro", "--device", "cpu",
                 "--avg_bits", "4.75", "--cache_dir", str(tmp_path / "c"), "--results_dir", str(tmp_path / "r")]) == 2
    assert "is quantized already; scripts/evaluate.py asks it questions" in capsys.readouterr().err


@pytest.mark.parametrize("text, said", [
    ("fp16_rato: 0.2", r"unknown key 'fp16_rato' \(did you mean 'fp16_ratio'\?\)"),
    ("calibration: {steps: 3}", r"calibration has an unknown key 'steps'.*known: method, n_steps, documents, baseline"),
    ("fp16_ratio: 1.5", "fp16_ratio is 1.5; give a share from 0 to 1"),
    ("fp16_ratio: much", "fp16_ratio is 'much'; give a number"), ("- a\n- b", "give keys with values"),
    ("calibration: {method: Saliency}", "method is 'Saliency'; use IntegratedGradients"),
    ("a: [", "does not read .*; write YAML as in configs/")])
def test_a_wrong_settings_file_is_one_sentence(tmp_path, text, said):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_settings(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", ["smollm2-135m", "llama3-8b"])
def test_the_settings_that_come_along_are_read(name):
    from pathlib import Path

    from core.environment import __file__ as core

    settings = read_settings(Path(core).parents[1] / "configs" / f"{name}.yaml")
    assert settings.fp16_ratio == 0.2 and settings.calibration.n_steps == 20
    assert CircuitSettings().calibration == settings.calibration


def test_a_settings_file_of_another_model_is_one_sentence(tiny_folder, tmp_path):
    llama = REPO / "configs" / "llama3-8b.yaml"
    said = "llama3-8b.yaml' is of model 'meta-llama/Meta-Llama-3-8B-Instruct', not of .*; give that model's, or take"
    with pytest.raises(UserError, match=said):
        calibrate.main(["--model", str(tiny_folder), "--config", str(llama), "--output", str(tmp_path / "s")])
    with pytest.raises(UserError, match=said):
        quantize.main(["--checkpoint", "smollm2-135m", "--scores", "x", "--config", str(llama), "--output", "y"])
    own = REPO / "configs" / "smollm2-135m.yaml"
    assert read_settings(own, "some/folder/SmolLM2-135M-Instruct").model == "some/folder/SmolLM2-135M-Instruct"
    assert read_settings(None, "m").model == "m" and read_settings(own).model == "smollm2-135m"


@pytest.mark.parametrize("ratio, said, bits", [("0", "linears are NF4", "4.5"), ("1", "nothing is quantized", "16")])
def test_a_ratio_of_nothing_or_all_is_said(steps, tiny_folder, tmp_path, capsys, ratio, said, bits):
    assert quantize.main(["--checkpoint", str(tiny_folder), "--scores", str(steps / "scores.safetensors"),
                          "--fp16_ratio", ratio, "--cache_dir", str(steps / "cache"), "--device", "cpu", "--output",
                          str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert said in shown and f": {bits}" in shown


def test_what_does_not_belong_together_is_one_sentence(steps, tiny_folder, tmp_path):
    where = ["--cache_dir", str(tmp_path / "c"), "--device", "cpu", "--output", str(tmp_path / "out")]
    scores = str(steps / "scores.safetensors")
    with pytest.raises(UserError, match=r"no-such.* does not read .*make it with scripts/calibrate.py"):
        quantize.main(["--checkpoint", str(tiny_folder), "--scores", str(tmp_path / "no-such"), *where])
    with pytest.raises(UserError, match=r"--fp16_ratio is 2.0; give a share from 0 to 1"):
        quantize.main(["--checkpoint", str(tiny_folder), "--scores", scores, "--fp16_ratio", "2", *where])
    other = save_tiny(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="are those of tiny-llama, not of"):
        quantize.main(["--checkpoint", str(other), "--scores", scores, *where])
    with pytest.raises(UserError, match="is there and not empty; give a new folder"):
        quantize.main(["--checkpoint", str(tiny_folder), "--scores", scores, *where[:-1], str(steps / "small")])
    with pytest.raises(UserError, match=r"documents of mmlu_pro could have calibrated .*made with 12 set apart"):
        asking.main(["--model", str(steps / "small"), "--tasks", "mmlu_pro", "--eval_size", "200", "--device", "cpu"])
    broken = tmp_path / "broken"
    shutil.copytree(steps / "small", broken)
    (broken / "circuit.json").write_text("{}")
    for call in (lambda: load_split(broken), lambda: asking.main(["--model", str(broken), "--tasks", "mmlu_pro"])):
        with pytest.raises(UserError, match=r"circuit.json of .* does not read .*make it again with scripts/quantize"):
            call()
    shutil.copy(steps / "small" / "circuit.json", broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"does not load .*make it again with scripts/quantize.py"):
        load_split(broken)


@pytest.mark.parametrize("ratio", ["0", "1"])
def test_the_ends_of_the_ratio(steps, tiny_folder, tmp_path, ratio, capsys):
    assert quantize.main(["--checkpoint", str(tiny_folder), "--scores", str(steps / "scores.safetensors"),
                          "--fp16_ratio", ratio, "--output", str(tmp_path / "out"), "--device", "cpu",
                          "--cache_dir", str(steps / "cache")]) == 0
    bits = float(capsys.readouterr().out.split(" stored bits")[0].split()[-1])
    assert 4.4 < bits < 4.8 if ratio == "0" else bits > 16
    load_split(tmp_path / "out", dense=True)
