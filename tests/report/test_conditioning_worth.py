"""What conditioning is worth, out of results made by hand."""

import json

import numpy as np
import pytest

from print_results import main
from report.records import load_results, load_samples
from tests.report.handmade import N, put


def row(folder, name, shift, seed=0, bits=4.25, text="mmlu_pro", **brackets):
    put(folder, name, bits, shift, seed=seed, brackets=brackets,
        solver_calibration={"text": text, "documents": 8, "tokens": 9, "seed": seed})


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "results"
    put(root, "fp16", 16.0, 0.0, budget=None)
    put(root, "uniform", 4.25, -0.5)
    for seed in (0, 1):
        row(root, "TaCQ", -0.1 - 0.01 * seed, seed)
        row(root, "TaCQ[calib=c4]", -0.3, seed, text="c4", calib="c4")
    return root


def told(folder, capsys, *more) -> str:
    assert main(["--results_dir", str(folder), "--format", "markdown", *more]) == 0
    return capsys.readouterr().out


def test_the_difference_is_paired_and_averaged_over_seeds(folder, capsys):
    said = told(folder, capsys)
    samples = {(r.name, r.seed): np.array([s.gold_loglik for s in load_samples(r)]) for r in load_results(folder)}
    changes = [samples["TaCQ", seed] - samples["TaCQ[calib=c4]", seed] for seed in (0, 1)]
    assert main(["--results_dir", str(folder), "--format", "json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["tables"][0]["datasets"]["mmlu_pro"]["conditioning"]
    assert one["gold_loglik"]["value"] == pytest.approx(np.mean(changes)) and one["seeds"] == [0, 1]
    assert one["by_seed"] == pytest.approx([change.mean() for change in changes])
    half = 1.96 * np.mean(changes, axis=0).std() / N**0.5
    assert one["gold_loglik"]["high"] - one["gold_loglik"]["low"] == pytest.approx(2 * half, rel=0.1)
    assert one["accuracy"]["value"] == 0 and one["p"] == one["p_raw"] < 0.001
    a, b = one["by_seed"]
    assert (f"mmlu_pro: TaCQ calibrated on mmlu_pro rather than on c4 is worth {one['gold_loglik']['value']:+.3f} ["
            in said) and f"(p <0.001; by seed {a:+.3f}, {b:+.3f})" in said


def test_each_other_text_is_a_pair_and_the_rest_of_the_brackets_must_agree(folder, capsys):
    row(folder, "TaCQ[calib=mix:0.5]", -0.2, text="mmlu_pro + c4", calib="mix:0.5")
    row(folder, "TaCQ[calib=c4,corrupt=rtn]", -0.2, text="c4", calib="c4", corrupt="rtn")  # no TaCQ[corrupt=rtn]
    row(folder, "SPQR[calib=c4]", -0.2, text="c4", calib="c4")  # no SPQR
    lines = [line for line in told(folder, capsys).splitlines() if "rather than" in line]
    assert len(lines) == 2 and "on mmlu_pro + c4 is worth" in lines[1] and "by seed" not in lines[1]


@pytest.mark.parametrize("change", [{"bits": 4.1}, {"seed": 7}])
def test_no_pair_at_other_bits_or_of_other_seeds(tmp_path, capsys, change):
    root = tmp_path / "results"
    put(root, "fp16", 16.0, 0.0, budget=None)
    row(root, "TaCQ", -0.1)
    row(root, "TaCQ[calib=c4]", -0.3, **{"text": "c4", "calib": "c4"} | change)
    assert "rather than" not in told(root, capsys)


def test_rows_that_differ_in_an_option_or_read_the_same_are_no_pair(tmp_path, capsys):
    root = tmp_path / "results"
    put(root, "fp16", 16.0, 0.0, budget=None)
    row(root, "TaCQ", -0.1)
    row(root, "TaCQ[kept=0.1]", -0.3)  # an option of the quantizer, no other text
    row(root, "TaCQ[calib=task]", -0.2, calib="task")
    assert "rather than" in told(root, capsys)
    for path in root.glob("*.json"):
        plain = json.loads(path.read_text())
        if plain["solver_calibration"]:
            plain["solver_calibration"]["digest"] = "one"
        path.write_text(json.dumps(plain))
    assert "rather than" not in told(root, capsys)


def test_native_rows_are_paired_by_their_ratio(tmp_path, capsys):
    root = tmp_path / "results"
    put(root, "fp16", 16.0, 0.0, budget=None)
    row(root, "TaCQ-native@0.1", -0.1)
    row(root, "TaCQ-native[calib=c4]@0.1", -0.3, text="c4", calib="c4")
    assert "TaCQ-native@0.1 calibrated on mmlu_pro rather than on c4" in told(root, capsys)
