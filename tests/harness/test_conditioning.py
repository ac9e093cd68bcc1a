"""What a row is calibrated on, as an axis: --conditioning, --calib_dataset and --calib auto."""

import json

import numpy as np
import pytest

from core.errors import UserError
from evaluation.tasks.gsm8k import GSM8K
from harness.cli.main import main
from harness.presets import build_grid
from harness.stages.alignment import align, words
from report.records import load_results
from tests.source_rows import write_rows

ROWS = ("TaCQ", "TAQ", "equal", "TaCQ[corrupt=rtn]", "SPQR[calib=c4]")


def asked(tiny, data, root, *more) -> list[str]:
    return ["--model", str(tiny), "--data_dir", str(data), "--calib_size", "6", "--eval_size", "8",
            "--num_fewshot", "0", "--calib_tokens", "600", "--calib_window", "64", "--device", "cpu",
            "--avg_bits", "4.75", "--group_size", "32", "--quantizer", "rtn", "--cache_dir", str(root / "cache"),
            "--results_dir", str(root / "results"), *more]


def test_each_method_comes_once_on_each_text():
    grid = build_grid("demo", methods=ROWS, conditioning=("task", "c4", "mix:0.5"), quantizer="rtn")
    assert grid.methods[3:] == ("TaCQ", "TaCQ[calib=c4]", "TaCQ[calib=mix:0.5]", "TAQ", "TAQ[calib=c4]", "equal",
                                "TaCQ[corrupt=rtn]", "TaCQ[calib=c4,corrupt=rtn]", "TaCQ[calib=mix:0.5,corrupt=rtn]",
                                "SPQR[calib=c4]")
    solved = build_grid("demo", methods=("equal",), conditioning=("c4", "task"))
    assert solved.methods[3:] == ("equal[calib=c4]", "equal")
    assert build_grid("demo", methods=("TaCQ",), conditioning=("task", "c4"), calib="c4").methods[3:] == (
        "TaCQ[calib=task]", "TaCQ")
    with pytest.raises(UserError, match="unknown --calib 'c5'"):
        build_grid("demo", methods=("TaCQ",), conditioning=("c5",))


@pytest.mark.parametrize("flags,said", [
    (["--calib_dataset", "mmul"], "unknown dataset 'mmul' (did you mean 'mmlu'?)"),
    (["--method", "TaCQ[calib_dataset=gsm9k]"], "unknown dataset 'gsm9k' (did you mean 'gsm8k'?)"),
    (["--dataset", "mmlu", "--calib_dataset", "mmlu:virology", "--method", "TAQ"], "that calibrate, of mmlu:virology, "
     "evaluate in mmlu"),
    (["--dataset", "wikitext2", "--calib", "mix:0.5", "--method", "TaCQ"], "wikitext2 has only general text"),
    (["--dataset", "wikitext2", "--method", "TAQO-oracle"], "has no labelled documents to calibrate on")])
def test_what_cannot_be_is_one_sentence(source_data, tiny_folder, tmp_path, capsys, flags, said):
    assert main(asked(tiny_folder, source_data, tmp_path, "--dataset", "mmlu", "--ppl_window", "64", *flags)) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())


def test_shares_follow_the_correlation_of_traces():
    t = np.array([1.0, 10, 100, 1000])
    assert align(t, t * 7).share == 0.5 and align(t, t[::-1]).share == 1.0 and align(t, t[::-1]).correlation < -0.99
    assert align(t, np.ones(4)).correlation == 0 and align(t, np.ones(4)).choice.kind == "task"
    some = align(t, np.array([1.0, 100, 10, 1000]))
    assert some.correlation == pytest.approx(0.8) and some.share == 0.625 and some.choice == ("mix", 0.625)
    assert words(some) == "mix:0.625 (traces on task and c4 correlate 0.80)"


def test_auto_chooses_a_mixture_and_says_so(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(GSM8K, "max_new_tokens", 4)
    data = write_rows(tmp_path / "data")
    (data / "c4").mkdir()
    rows = [{"text": "Some page of the web, of no task at all. " * 12}] * 4
    (data / "c4" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = asked(tiny_folder, data, tmp_path, "--dataset", "gsm8k", "--method", "TaCQ",
                  "--corrupt", "rtn", "--conditioning", "task", "auto")
    assert main([*flags, "--dry_run"]) == 0
    assert not list((tmp_path / "cache").glob("*/gradients.safetensors")), "a dry run computes nothing"
    assert main(flags) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    rows = {r.name: r for r in load_results(tmp_path / "results")}
    chosen = rows["TaCQ[calib=auto]"].solver_calibration["chosen"]
    assert f"gsm8k: TaCQ[calib=auto], seed 42, calibrated on {chosen}" in " ".join(said.split())
    assert "gsm8k: TaCQ calibrated on gsm8k rather than on" in " ".join(said.split())
    (stored,) = (tmp_path / "cache").glob("*/alignment.json")
    share = json.loads(stored.read_text())["share"]
    same = rows["TaCQ[calib=auto]"].stages["scores"] == rows["TaCQ"].stages["scores"]
    assert same == (share == 1) and 0.5 <= share <= 1 and share * 8 % 1 == 0
    assert main(flags) == 0  # and again from the store
