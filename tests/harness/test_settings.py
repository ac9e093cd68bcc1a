"""A method's settings on their way through the harness: flags, help, rows of one table, keys, dry run; and a plugin's
own.
"""

import pytest

import harness.stages.gradients
from core import plugins
from core.plugins import load_plugin
from core.registry import METHODS, SCORERS
from harness.cli.flags import build_parser, listing
from harness.cli.main import main
from harness.grid import Grid, grid_of, table_settings
from harness.presets import build_grid
from harness.stages.plan import plan_key
from harness.stages.samples import samples_key
from harness.stages.scores import scores_key
from report.records import load_results
from tests.harness.bench import case_of, cases_of
from tests.harness.test_grid import run

PLUGIN = """
from core.registry import method, scorer
from core.settings import Setting
from core.types import Scores

SLOPE = Setting("slope_test", float, 1.0, "how much later blocks count", low=0, high=9)

@scorer("steep_test", granularity="layer", needs=(), params=(SLOPE,))
def steep(ctx):
    return Scores("layer", ctx.spread([1 + ctx.param("slope_test") * i for i in range(len(ctx.blocks))]), "test")

method("steep_test", scorer="steep_test")
"""


@pytest.fixture
def plugin(tmp_path, registries):
    """A plugin with a setting of its own."""
    (tmp_path / "steep.py").write_text(PLUGIN)
    return tmp_path / "steep.py"


def test_settings_become_flags_with_help_and_defaults():
    text = " ".join(build_parser().format_help().split())
    for words in ("--score_docs N",
                  "calibration documents of TAQ, TAQO and AWQ-channel (default: 256; demo: 128; test: 32)",
                  "read by AWQ-channel, TAQ, TAQ-native",
                  "--corrupt {gptq,rtn}", "--calib_tokens N", "(default: 8192; demo: 2048; full: 262144)"):
        assert words in text, words
    assert "reads score_docs" in listing() or "score_docs" in listing()


def test_two_settings_of_one_method_stand_in_one_table(tiny_folder, tmp_path, monkeypatch):
    """The rows share what they share: the backward pass knows nothing of the quantized model that they compare with."""
    passes, real = [], harness.stages.gradients.gradient_sums
    monkeypatch.setattr(harness.stages.gradients, "gradient_sums", lambda *a, **k: passes.append(1) or real(*a, **k))
    assert run(tiny_folder, tmp_path, "--method", "TaCQ", "TaCQ[corrupt=rtn]", "TaCQ[calib_tokens=300]",
               "--calib_tokens", "600", datasets=("mmlu_pro",)) == 0
    results = {r.method.name: r for r in load_results(tmp_path / "results")}
    assert {"TaCQ", "TaCQ[corrupt=rtn]", "TaCQ[calib_tokens=300]"} <= set(results) and len(passes) == 2
    assert len({r.stages["scores"] for name, r in results.items() if name.startswith("TaCQ")}) == 3
    assert len({str(r.settings)
                for r in results.values()}) == 1 and results["TaCQ[corrupt=rtn]"].method.settings == {"corrupt": "rtn"}
    assert results["TaCQ[calib_tokens=300]"].solver_calibration["asked_tokens"] == 300


def test_options_of_published_rows_stand_in_brackets(tiny_folder, tmp_path):
    """Another share of blocks, another group: rows of their own, with their own true bits."""
    rows = ("TAQ-native", "TAQ-native[fraction=0.5,low=3]", "GPTQ-native[act_order=true,group=16]")
    assert run(tiny_folder, tmp_path, "--method", *rows, datasets=("mmlu_pro",)) == 0
    results = {r.name: r for r in load_results(tmp_path / "results")}
    high = {name: sum(b == 8 for b in results[name].bits.per_linear.values()) for name in rows[:2]}
    assert high[rows[1]] == 2 * high[rows[0]] > 0 and set(results[rows[1]].bits.per_linear.values()) == {3, 8}
    assert results[rows[2]].method.options["act_order"] is True and results[rows[2]].bits.average > 5  # 4 bits, 20 / 16
    assert len({results[name].stages["plan"] for name in rows}) == 3


def digests(tiny, root, name: str, **changes) -> tuple:
    case = case_of(name, models=(str(tiny),), methods=(name,), datasets=("mmlu_pro",), calib_size=12, eval_size=12,
                   device="cpu", threads=1,
                   avg_bits=(4.75,), quantizer="gptq", cache_dir=str(root / "cache"), **{"calib_tokens": 800} | changes)
    return scores_key(case)[0], plan_key(case)[0], samples_key(case, "p")[0]


@pytest.mark.parametrize(("bracket", "flag"), [
    ("TaCQ[corrupt=rtn]", {"corrupt": "rtn"}), ("TaCQ[loss_mask=answer]", {"loss_mask": "answer"}),
    ("TaCQ[grad_dtype=bf16]", {"grad_dtype": "bf16"}),
    ("TaCQ[calib_tokens=400]", {"calib_tokens": 400}), ("TAQ[score_docs=3]", {"score_docs": 3}),
    ("TAQoS[kl_docs=3]", {"kl_docs": 3})])
def test_a_bracket_means_what_the_flag_means(tiny_folder, tmp_path, bracket, flag):
    """For its own row: the same scores, plans and samples as a grid with that flag, and others than without."""
    plain = bracket.partition("[")[0]
    row, other = digests(tiny_folder, tmp_path, bracket), digests(tiny_folder, tmp_path, plain)
    grid = digests(tiny_folder, tmp_path, plain, **flag)
    assert row == grid and row[0] != other[0]


def test_a_setting_that_the_grids_quantizer_does_not_read_is_told(tiny_folder, capsys):
    assert main(["--model", str(tiny_folder), "--method", "THRIFT", "--quantizer", "rtn"]) == 2
    assert ("THRIFT tells the solver what --quantizer rtn does not read; use --quantizer gptq, or other rows"
            in capsys.readouterr().err)
    assert build_grid("demo", quantizer="rtn").methods == ("fp16", "uniform", "random", "TAQ")
    assert main(["--model", str(tiny_folder), "--method", "uniform[calib=c4]", "--quantizer", "rtn"]) == 2
    said = capsys.readouterr().err
    assert ("uniform[calib=c4] reads no setting 'calib' with --quantizer rtn; it reads: groups, scales, kept, "
            "symmetric, shuffle") in said


def test_the_dry_run_shows_rows_with_their_settings(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert run(tiny_folder, tmp_path, "--method", "TAQ[score_docs=4]", "--dry_run", datasets=("mmlu_pro",)) == 0
    assert "TAQ[score_docs=4]" in capsys.readouterr().out


def test_a_plugins_setting_is_a_flag_a_bracket_and_part_of_the_key(plugin, tiny_folder, tmp_path, capsys):
    given = ("--plugin", str(plugin), "--method", "steep_test", "steep_test[slope_test=3]")
    assert run(tiny_folder, tmp_path, *given, "--slope_test", "2", datasets=("mmlu_pro",)) == 0
    results = {r.method.name: r for r in load_results(tmp_path / "results")}
    assert results["steep_test"].stages["scores"] != results["steep_test[slope_test=3]"].stages["scores"]
    assert results["steep_test"].settings["slope_test"] == 2.0
    assert run(tiny_folder, tmp_path, *given, "--slope_test", "10", datasets=("mmlu_pro",)) == 2
    assert "--slope_test is 10; it must be from 0 to 9" in capsys.readouterr().err
    assert run(tiny_folder, tmp_path, "--plugin", str(plugin), "--method", "steep_test[slop=3]",
               datasets=("mmlu_pro",)) == 2
    assert "steep_test reads no setting 'slop' (did you mean 'slope_test'?)" in capsys.readouterr().err
    # at its default it sets nothing apart
    assert table_settings(build_grid("demo", slope_test=1.0)) == table_settings(build_grid("demo"))


def test_a_changed_plugin_makes_other_scores(plugin, tiny_folder, tmp_path):
    """The same name and version, another text: nothing of the old file's is served."""
    keys = []
    for text in (PLUGIN, PLUGIN.replace("1 + ctx", "2 + ctx")):
        plugin.write_text(text)
        for registry in (METHODS, SCORERS):
            registry._items.pop("steep_test", None)
        plugins._loaded.clear()
        load_plugin(str(plugin))
        case = case_of("steep_test", models=(str(tiny_folder),), methods=("steep_test",), datasets=("mmlu_pro",),
                       calib_size=6, eval_size=12, device="cpu", cache_dir=str(tmp_path / "cache"))
        keys.append(scores_key(case)[0])
    assert len(set(keys)) == 2


def test_a_grid_survives_its_way_through_a_file():
    import json
    from dataclasses import asdict

    grid = build_grid("test", methods=("TaCQ[calib=c4]",), kl_docs=7)
    plain = json.loads(json.dumps(asdict(grid)))
    assert grid_of(plain) == grid and isinstance(grid, Grid)
    # as fields of their own
    old = {k: v for k, v in plain.items() if k != "settings"} | {"kl_docs": 7, "score_docs": 32, "oracle_docs": 16}
    assert table_settings(grid_of(old)) == table_settings(grid)


def test_rows_of_one_calibration_share_a_pass_and_others_do_not(tiny_folder, tmp_path):
    from harness.stages.gradients import wanted_kinds

    cases = cases_of(models=(str(tiny_folder),), methods=("TaCQ", "SqueezeLLM", "TaCQ-gradient[calib_tokens=300]"),
                     datasets=("mmlu_pro",),
                     calib_size=6, eval_size=12, device="cpu", cache_dir=str(tmp_path / "cache"))
    kinds = {case.method.name: wanted_kinds(case) for case in cases}
    assert kinds["TaCQ"] == {"abs", "square"} and kinds["TaCQ-gradient[calib_tokens=300]"] == {"sum"}
