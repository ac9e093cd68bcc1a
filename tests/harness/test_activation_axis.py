"""Bits of activations as an axis of the grid: rows, identities, tables, and what equals what."""

import pytest

from core.activations import activations_of
from core.errors import UserError
from harness.api import evaluate, quantize
from harness.cli.main import main
from harness.grid import cells_of
from harness.presets import build_grid
from report.records import load_results, load_samples
from report.tables.tables import group
from report.text.render import text

COMMON = dict(datasets=("mmlu_pro",), calib_size=12, eval_size=12, device="cpu", threads=1, avg_bits=(4.75,),
              quantizer="rtn", seeds=(0,), methods=("uniform", "AWQ-channel"), score_docs=4)


def line(**given) -> list[str]:
    """A command line."""
    names = {"models": "model", "methods": "method", "datasets": "dataset"}
    words = []
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{names.get(name, name)}", *map(str, values)]
    return words


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("axis")
    where = dict(models=(str(tiny_folder),), results_dir=str(root / "r"), cache_dir=str(root / "c"))
    assert main(line(**where, **COMMON, act_bits=(16, 4), act_keep=(0.0, 0.5, 1.0), kv_bits=(16,))) == 0
    return root


def cells(root):
    return {r.name: r for r in load_results(root / "r")}


def test_every_row_comes_with_every_bits(done):
    names = cells(done)
    assert {"uniform", "uniform[act_bits=4]", "uniform[act_bits=4,act_keep=0.5]", "uniform[act_bits=4,act_keep=1]",
            "fp16", "fp16[act_bits=4]", "AWQ-channel[act_bits=4,act_keep=0.5]"} <= set(names)
    assert not any("act_keep" in name and "act_bits" not in name for name in names)
    assert names["uniform[act_bits=4]"].activations == activations_of({"act_bits": 4})
    assert all(r.bits.average == names["uniform"].bits.average for name, r in names.items()
               if name.startswith("uniform"))


def test_all_channels_kept_is_sixteen_bits_byte_for_byte_and_four_bits_are_another_answer(done):
    names = cells(done)
    loglik = {name: [s.gold_loglik for s in load_samples(r)] for name, r in names.items()}
    for row in ("uniform", "fp16", "AWQ-channel"):
        assert loglik[row] == loglik[f"{row}[act_bits=4,act_keep=1]"]
        assert len({tuple(loglik[f"{row}{told}"]) for told in ("", "[act_bits=4]", "[act_bits=4,act_keep=0.5]")}) == 3


def test_tables_hold_one_kind_of_activations_and_full_precision(done):
    tables = group(load_results(done / "r"))
    titles = [table.title for table in tables]
    assert len(tables) == 4 and sum("activations A4 50 % kept" in title for title in titles) == 1
    (half,) = [table for table in tables if "activations A4 50 % kept" in table.title]
    rows = {row["method"]: row for row in half.rows}
    assert set(rows) == {"fp16", "fp16[act_bits=4,act_keep=0.5]", "uniform", "random", "AWQ-channel"}
    assert rows["fp16"]["activations"] == "" and rows["uniform"]["activations"] == "A4 50 % kept"
    assert rows["AWQ-channel"]["u_loglik"] is not None and rows["uniform"]["d_loglik"] is not None
    assert {row["best_loglik"] for row in half.rows} >= {"best"}
    shown = text([half], "markdown")
    assert "| uniform | W4.7" in shown and "A4 50 % kept |" in shown
    assert f"| fp16 | {rows['fp16']['bits']:.3f} |" in shown


def test_a_row_may_say_it_alone_and_python_gives_the_same(done, tiny_folder):
    grid = build_grid("demo", models=(str(tiny_folder),), **COMMON | {"methods": ("uniform[act_bits=4]", "TAQ")})
    assert [c.method.name for c in cells_of(grid)] == ["fp16", "uniform", "random", "uniform[act_bits=4]", "TAQ"]
    small = quantize(str(tiny_folder), "uniform[act_bits=4]", "mmlu_pro", cache_dir=str(done / "c"),
                     **{k: v for k, v in COMMON.items() if k not in ("datasets", "methods", "avg_bits")}, avg_bits=4.75)
    assert evaluate(small).samples == load_samples(cells(done)["uniform[act_bits=4]"])


@pytest.mark.parametrize("given, said", [
    ({"act_keep": (1.5,)}, "--act_keep is 1.5; it must be from 0 to 1"),
    ({"act_bits": (5, 7)}, "--act_bits is 7; use one of: 3, 4, 5, 6, 8, 16"),
    ({"kv_bits": ()}, "--kv_bits is empty; name at least one"),
    ({"methods": ("uniform[act_bits=2]",)}, r"uniform\[act_bits\] is 2; use one of")])
def test_what_cannot_be_is_one_sentence(tiny_folder, given, said):
    with pytest.raises(UserError, match=said):
        build_grid("demo", models=(str(tiny_folder),), **COMMON | given)
