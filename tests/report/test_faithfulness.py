"""Faithfulness curves against numbers made by hand, and the real command on a tiny model."""

import json
from dataclasses import replace

import numpy as np
import pytest

import print_results
from core.errors import UserError
from harness.faithfulness import Asked
from report.figures.faithfulness import drawing, faithfulness_figure
from report.page import write
from report.records import MethodFacts, load_results
from report.tables.faithfulness import faithfulness
from report.tables.tables import group
from report.text.faithfulness import sheets
from scripts import faithfulness as command
from tests.report.handmade import N, documents, put


def cell(folder, scorer, share, level, bits, **more):
    """A cell whose documents lie ``level`` nats above those of full precision, each by the same."""
    seed = more.pop("seed", 0)
    options = {"bits": 3, "fp16_ratio": share, **more}
    name = f"{scorer}+circuit_complement[{share},{more}]"
    samples = [replace(s, gold_loglik=s.gold_loglik + level) for s in documents("mmlu_pro", 0.0, 0)]
    method = MethodFacts(name, scorer=scorer, allocator="circuit_complement", quantizer="rtn", native=True,
                         options=options)
    put(folder, method, bits, level, seed=seed, budget=None, samples=samples)


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, "fp16", 16.0, 0.0, budget=None, samples=documents("mmlu_pro", 0.0, 0))
    cell(tmp_path, "circuit", 0, -2.0, 3.2)
    for share, best, worst, bits in ((0.1, -1.0, -1.8, 4.5), (0.5, -0.5, -1.5, 9.0)):
        cell(tmp_path, "circuit", share, best, bits)
        cell(tmp_path, "circuit", share, worst, bits, first="worst")
        for seed, more in ((0, -0.1), (1, 0.1)):
            cell(tmp_path, "circuit-random", share, (best + worst) / 2 + more, bits, seed=seed)
        samples = [replace(s, gold_loglik=s.gold_loglik - 0.2) for s in documents("mmlu_pro", 0.0, 0)]
        put(tmp_path, "uniform", bits, 0, budget=bits, samples=samples)
    return tmp_path


def test_values_and_areas_are_those_of_the_formula(folder):
    (family,) = faithfulness(load_results(folder))
    curves = {curve.label: curve for curve in family.curves}
    assert family.full - family.nothing == pytest.approx(2.0) and family.n == N and family.nothing_bits == 3.2
    assert [p["value"] for p in curves["best first"].points] == pytest.approx([0.5, 0.75])
    assert [p["value"] for p in curves["random"].points] == pytest.approx([0.3, 0.5])
    assert [p["value"] for p in curves["worst first"].points] == pytest.approx([0.1, 0.25])
    assert [p["value"] for p in curves["uniform"].points] == pytest.approx([0.9, 0.9])
    assert curves["random"].seeds == 2 and curves["uniform"].bits == (4.5, 9.0)
    # 0 at 0, 0.5 at 0.1, 0.75 at 0.5: (0.025 + 0.25) / 0.5
    assert curves["best first"].area["value"] == pytest.approx(0.55)
    assert curves["worst first"].ahead["value"] == pytest.approx(0.55 - (0.005 + 0.07) / 0.5)
    # every document moves alike, so nothing is left to chance
    assert all(p["low"] == pytest.approx(p["high"]) for curve in family.curves for p in curve.points)


def test_intervals_are_those_of_the_paired_bootstrap(folder):
    noise = np.random.default_rng(5).normal(size=N)
    samples = [replace(s, gold_loglik=s.gold_loglik - 1 + e) for s, e in zip(documents("mmlu_pro", 0, 0), noise)]
    result = next(r for r in load_results(folder) if r.method.options.get("fp16_ratio") == 0.1
                  and r.method.scorer == "circuit" and "first" not in r.method.options)
    (folder / result.samples).unlink()
    result.file.unlink()
    put(folder, result.method, 4.5, 0, budget=None, samples=samples)
    (family,) = faithfulness(load_results(folder))
    point = family.curves[0].points[0]
    half = 1.96 * noise.std() / N**0.5 / 2  # the denominator is 2 in every resample
    assert point["value"] == pytest.approx(0.5 + noise.mean() / 2)
    assert point["high"] - point["low"] == pytest.approx(2 * half, rel=0.1)


def test_rows_of_other_settings_units_and_quantizers_are_other_curves(folder):
    def more(scorer, share, level, seed=0, quantizer="rtn", settings=None, **options):
        name = f"{scorer}+circuit_complement[{share},{quantizer},{settings},{options}]"
        facts = MethodFacts(name, scorer=scorer, allocator="circuit_complement", quantizer=quantizer, native=True,
                            options={"bits": 3, "fp16_ratio": share, **options}, settings=settings or {})
        samples = [replace(s, gold_loglik=s.gold_loglik + level) for s in documents("mmlu_pro", 0.0, 0)]
        put(folder, facts, 4.9, level, seed=seed, budget=None, samples=samples)

    for told in ({"settings": {"ig_steps": 1}}, {"quantizer": "gptq"}, {"units": "heads"}):
        more("circuit", 0, -2.0, **told)
        more("circuit", 0.1, -1.6, **told)
        more("circuit-random", 0.1, -1.9, **({} if "settings" in told else told))
    families = {one.title.removeprefix("mmlu_pro: ").partition(", the")[0]: one for one in
                faithfulness(load_results(folder))}
    assert set(families) == {"circuit", "circuit, ig_steps 1", "circuit, gptq", "circuit, units heads"}
    assert [p["value"] for p in families["circuit"].curves[0].points] == pytest.approx([0.5, 0.75])
    for name in ("circuit, gptq", "circuit, units heads", "circuit, ig_steps 1"):
        curves = {curve.label: curve for curve in families[name].curves}
        assert curves["best first"].points[0]["value"] == pytest.approx(0.2) and curves["best first"].seeds == 1
    assert {c.label: c for c in families["circuit, gptq"].curves}["random"].points[0]["value"] == pytest.approx(0.05)


def test_several_seeds_of_the_circuit_are_averaged_with_their_own_uniform(folder):
    cell(folder, "circuit", 0, -2.4, 3.2, seed=1)
    cell(folder, "circuit", 0.1, -1.4, 4.7, seed=1)
    samples = [replace(s, gold_loglik=s.gold_loglik - 0.6) for s in documents("mmlu_pro", 0.0, 0)]
    put(folder, "uniform", 4.7, 0, budget=4.7, samples=samples)
    (family,) = faithfulness(load_results(folder))
    curves = {curve.label: curve for curve in family.curves}
    assert family.full - family.nothing == pytest.approx(2.2)
    assert curves["best first"].points[0]["value"] == pytest.approx((2.2 - 1.2) / 2.2)
    assert curves["best first"].bits[0] == pytest.approx(4.6) == curves["uniform"].bits[0]
    assert curves["uniform"].points[0]["value"] == pytest.approx((2.2 - 0.4) / 2.2)


def test_without_full_precision_or_the_empty_circuit_there_is_no_curve(folder):
    results = load_results(folder)
    assert not faithfulness([r for r in results if r.name != "fp16"])
    assert not faithfulness([r for r in results if r.method.options.get("fp16_ratio") != 0])
    assert faithfulness([r for r in results if r.name != "uniform"])[0].curves[-1].label == "worst first"


def test_it_is_printed_drawn_and_on_the_page(folder):
    families = faithfulness(load_results(folder))
    (sheet,) = sheets(families)
    assert sheet.title == "mmlu_pro: circuit, the rest at 3 bits"
    assert [row["best first"] for row in sheet.rows][:3] == ["0.50 [0.50, 0.50]", "0.75 [0.75, 0.75]",
                                                              "0.55 [0.55, 0.55]"]
    assert sheet.rows[3]["uniform"].startswith("-0.26")
    assert sheet.rows[0]["random (2 seeds)"] == "0.30 [0.30, 0.30]"
    assert drawing(families).count("<title>best first") == 2 and "var(--" not in drawing(families)
    assert "0.55" in faithfulness_figure(families).numbers[0][1].to_string()
    page = write(str(folder), str(folder / "page.html"), load_results(folder)).read_text()
    assert "How much of the task is left when all but a circuit is quantized?" in page


def test_a_curves_cells_are_no_rows_of_tables_but_printed_after_them(folder, capsys):
    put(folder, "uniform", 4.25, -0.3)
    put(folder, "TAQ", 4.25, -0.2)
    (table,) = group(load_results(folder))
    assert [row["method"] for row in table.rows] == ["fp16", "uniform", "TAQ"]
    assert print_results.main(["--results_dir", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.index("mmlu_pro: circuit, the rest at 3 bits") > said.index("TAQ") > 0
    assert print_results.main(["--results_dir", str(folder), "--format", "markdown"]) == 0
    assert "| area | - | 0.55 [0.55, 0.55] |" in capsys.readouterr().out
    assert print_results.main(["--results_dir", str(folder), "--format", "json"]) == 0
    points = json.loads(capsys.readouterr().out)["faithfulness"]
    assert len(points) == 8 and points[0]["faithfulness"] == pytest.approx(0.5)


def test_what_cannot_be_asked_is_one_sentence():
    with pytest.raises(UserError, match="--scorer is 'TAQ', which scores no heads; use circuit"):
        Asked("m", ("mmlu_pro",), scorer="TAQ")
    for name in ("circuit-random", "LIG-channel"):
        with pytest.raises(UserError, match=f"--scorer is '{name}', which scores no heads"):
            Asked("m", ("mmlu_pro",), scorer=name)
    assert "fp16_ratio=0.3333333333]" in Asked("m", ("mmlu_pro",)).rows("circuit", shares=(0.3333333333,))[0]
    with pytest.raises(UserError, match=r"--shares \(0.0, 0.5\) are out of range"):
        Asked("m", ("mmlu_pro",), shares=(0.0, 0.5))


def test_the_command_runs_prints_and_goes_on(tiny_folder, tmp_path, capsys):
    argv = ["--model", str(tiny_folder), "--tasks", "mmlu_pro", "--bits", "3", "--shares", "0.1", "0.25", "--seeds",
            "0", "1", "--eval_size", "8", "--threads", "1", "--device", "cpu", "--results_dir", str(tmp_path / "r"),
            "--cache_dir", str(tmp_path / "c"), "--figure", str(tmp_path / "f.svg")]
    assert command.main(argv) == 0
    said = capsys.readouterr().out
    assert "mmlu_pro: circuit, the rest at 3 bits" in said and (tmp_path / "f.svg").read_text().startswith("<svg")
    results = load_results(tmp_path / "r")
    best = {r.bits.average for r in results if r.method.scorer == "circuit" and r.method.options["fp16_ratio"]
            and "first" not in r.method.options}
    uniform = {r.avg_bits for r in results if r.name == "uniform"}
    assert uniform == best and len(best) == 2
    assert all(r.avg_bits - 0.01 < r.bits.average <= r.avg_bits for r in results if r.name == "uniform")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}
    assert command.main(argv) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")} == before
    # heads alone, by exact ablation
    assert command.main([*argv, "--scorer", "heads-ablation", "--shares", "0.25"]) == 0
    assert "heads-ablation, units heads, the rest at 3 bits" in capsys.readouterr().out
    heads = [r for r in load_results(tmp_path / "r") if r.method.options.get("units") == "heads"]
    assert {r.bits.notes["kept_units"]["heads"] for r in heads} == {0, 8}  # a quarter of 32
    assert {r.method.scorer for r in heads} == {"heads-ablation", "circuit-random"}
