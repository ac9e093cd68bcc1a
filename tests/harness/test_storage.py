"""How a row stores its grid, told in its brackets."""

import pytest

from harness.cli.main import main
from harness.stages.options import quantizer_options
from quantization.bits import layer_bits
from report.records import load_results
from report.tables.tables import tables
from tests.harness.bench import case_of
from tests.harness.test_all_methods import flags, where_of


@pytest.mark.parametrize("quantizer", ("gptq", "rtn"))
def test_rows_of_one_table_with_groups_and_scales_of_their_own(quantizer, tiny_folder, tmp_path):
    names = ("uniform[groups=16]", "uniform[groups=16,scales=log]", "TaCQ[groups=16,scales=log]",
             "TaCQ[kept=8,scales=log]", "fisher-price[scales=log]")
    where = where_of(tiny_folder, tmp_path) | {"quantizer": quantizer, "tolerance": 0.05}
    assert main(flags(**where, methods=names, avg_bits=(4.9,))) == 0
    found = {r.name: r for r in load_results(tmp_path / "results")}
    assert {name: found[name].bits.group_size for name in ("uniform", *names[:3])} == {
        "uniform": 32, "uniform[groups=16]": 16, "uniform[groups=16,scales=log]": 16, "TaCQ[groups=16,scales=log]": 16}
    assert all(4.85 < found[name].bits.average <= 4.9 for name in ("uniform", *names))
    assert found["TaCQ[kept=8,scales=log]"].bits.notes["kept"] > 0
    # 4 bits in groups of 16: fp16 scales leave nothing at 4.9, logarithmic ones (4 + 10 / 16) leave linears at 5
    assert max(found["uniform[groups=16,scales=log]"].bits.per_linear.values()) >= 4
    assert min(found["uniform[groups=16]"].bits.per_linear.values()) < 4
    table = tables(tmp_path / "results")[0]
    assert any("rows differ in the size of their groups" in line and "16" in line for line in table.said)


def test_a_common_row_in_another_order_of_columns_stores_no_order(tiny_folder, tmp_path):
    names = ("uniform[act_order=true]", "TaCQ[kept=8,scales=log]", "TaCQ[act_order=true,kept=8,scales=log]")
    assert main(flags(**where_of(tiny_folder, tmp_path) | {"quantizer": "gptq"}, methods=names, avg_bits=(4.9,))) == 0
    bits = {r.name: r.bits for r in load_results(tmp_path / "results")}
    metrics = {r.name: r.metrics["gold_loglik"].value for r in load_results(tmp_path / "results")}
    for name, other in (("uniform", names[0]), names[1:]):
        assert bits[name].stored == pytest.approx(bits[other].stored, rel=1e-3)  # the index of other kept weights
        assert bits[other].average <= 4.9 and metrics[name] != metrics[other]
    assert bits["uniform"].stored == bits[names[0]].stored


def test_the_base_level_is_stored_as_the_row_is(done_storage):
    case = done_storage("TaCQ[groups=16,scales=log]")
    from harness.stages.base_quantized import base, base_layer

    layer = base_layer(base(case), (64, 32))
    assert (layer.form, layer.group_size, layer.scale_bits) == ("log", 16, 6)
    assert layer_bits(layer, (64, 32)) == 64 * 32 * layer.bits + 64 * 2 * (6 + layer.bits) + 8


@pytest.fixture
def done_storage(tiny_folder, tmp_path):
    return lambda name: case_of(name, **where_of(tiny_folder, tmp_path), run_type="demo", methods=(name,),
                                datasets=("mmlu_pro",), avg_bits=(4.9,), quantizer="gptq", calib_tokens=200)


@pytest.mark.parametrize("given, said", [
    (("uniform[groups=24]",), "does not divide"), (("uniform[scales=int8]",), "use one of: fp16, log, table"),
    (("uniform[scales=table,symmetric=true]",), "has no zero point"),
    (("TaCQ-budget-native[scales=table,symmetric=true]",), "has no zero point"),
    (("GPTQ-native[groups=16]",), "reads no setting 'groups'")])
def test_what_cannot_be_is_said(given, said, tiny_folder, tmp_path, capsys):
    assert main(flags(**where_of(tiny_folder, tmp_path), methods=given)) != 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name, static", [
    ("heads-static-native[act_order=true]", True), ("THRIFT", True), ("TaCQ+global_topk[act_order=true]", True),
    ("uniform", None), ("GPTQ-native[act_order=true]", None), ("TaCQ-native", None)])
def test_rows_on_the_common_grid_keep_their_groups_in_another_order(name, static, tiny_folder, tmp_path):
    case = case_of(name, **where_of(tiny_folder, tmp_path), methods=(name,), quantizer="gptq",
                   datasets=("mmlu_pro",))
    assert quantizer_options(case, "gptq").get("static_groups") is static


def test_a_run_says_first_what_each_grid_can_store_and_which_forms_cannot_be_made(tiny_folder, tmp_path, capsys):
    names = ("uniform[scales=table]", "GPTQ-budget-native", "GPTQ-budget-native[group=16]",
             "SqueezeLLM-budget-native[group=16]")
    where = where_of(tiny_folder, tmp_path) | {"quantizer": "gptq"}
    assert main([*flags(**where, methods=names, avg_bits=(2.58,)), "--dry_run"]) == 0
    said = capsys.readouterr().err
    # 2 + (16 + 2) / 32; 2 + 6 / 32 and a table and an exponent a linear
    assert "can be 2.5625 to 16.00 for uniform, random; asked" in said
    assert "to 16.00 for uniform[scales=table]; asked" in said
    assert "GPTQ-budget-native[group=16] at 2.58 bits will fail: 2.58 bits a weight cannot be met by this form" in said
    assert "GPTQ-budget-native at" not in said
    assert said.count("SqueezeLLM-budget-native[group=16] at 2.58 bits will fail: a codebook has one table a row") == 1


@pytest.mark.parametrize("quantizer", ("gptq", "rtn"))
def test_rows_on_tables_run_export_and_are_counted(quantizer, tiny_folder, tmp_path):
    names = ("uniform[scales=table]", "TaCQ[kept=8,scales=table]", "TAQ[scales=table]", "fisher-price[scales=table]")
    where = where_of(tiny_folder, tmp_path) | {"quantizer": quantizer, "tolerance": 0.05}
    assert main(flags(**where, methods=names, avg_bits=(3.4,))) == 0
    found = {r.name: r for r in load_results(tmp_path / "results")}
    assert all(3.35 < found[name].bits.average <= 3.4 for name in names)
    assert found["TaCQ[kept=8,scales=table]"].bits.notes["kept"] > 0
    metrics = {found[name].metrics["gold_loglik"].value for name in ("uniform", *names)}
    assert len(metrics) == 5
