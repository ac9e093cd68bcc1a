"""Exports: a folder that holds a cell's model, loads elsewhere, and answers as the cell did."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.errors import UserError
from core.registry import METHODS
from harness.cli.main import main, without_token
from harness.exports import folder_name
from harness.stages.activations import activations, kept
from harness.stages.export import contents_of, export
from harness.stages.plan import plan
from harness.stages.weights import true_plan
from quantization.activations import quantizing
from quantization.packing.decode import PackedLinear
from quantization.packing.formats.packed import load_packed
from report.records import load_results, load_samples
from tests.harness.bench import cases_of
from tests.harness.test_all_methods import flags, where_of

ROWS = (
    *(name for name in METHODS if not name.startswith(("TAQO-oracle", "heads-dynamic"))),
    "TaCQ[act_bits=4,act_keep=0.1]", "TaCQ[kept=8,scales=log]", "uniform[act_bits=8,kv_bits=8]",
    "uniform[symmetric=true]", "TaCQ-budget-native[group=32,kept=8,scales=log,tune=2]")
GRID = dict(run_type="demo", methods=ROWS, datasets=("mmlu_pro",), eval_size=8, calib_size=24, calib_tokens=400,
            avg_bits=(3.75,), tolerance=0.05, quantizer="gptq", device="cpu", threads=1, batch_tokens=600, seeds=(0,),
            keep_ratio=(0.01,), dynamic_heads=(1,))
TOKENS = torch.arange(3, 43)[None] % 250


@pytest.fixture(scope="module")
def cases(tiny_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    where = dict(models=(str(tiny_folder),), cache_dir=str(root / "cache"), results_dir=str(root / "results"))
    return {case.method.name: case for case in cases_of(**GRID, **where)}


def of_row(cases, row: str):
    """The case of a row, whatever its method's own bits are."""
    plain = row.partition("[")[0]
    return next(case for name, case in cases.items()
                if name == row or (row == plain and name.partition("[")[0].partition("@")[0] == plain
                                   and "[" not in name))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits


@pytest.mark.parametrize("row", ROWS)
def test_a_packed_export_computes_what_the_cell_does_and_its_bytes_are_those_counted(cases, row, tmp_path):
    case = of_row(cases, row)
    facts = export(case, tmp_path / "out", "packed")
    contents, true = contents_of(case, plan(case))
    with quantizing(case.model.module, activations(case), kept(case)):
        wanted = logits(case.model.module)
    case.model.originals.restore()
    model = load_packed(tmp_path / "out")
    assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(load_packed(tmp_path / "out", dense=True)), wanted)
    if case.method.allocator == "none":
        return
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == len(contents.linears) and (packed or row == "TAQO-native")  # 8 blocks at 16 bits: all
    # linears that stay at 16 bits are stored with the others, as plain weights
    whole = sum(case.model.shapes[fqn][0] * case.model.shapes[fqn][1] * 2 for fqn, layer in true.layers.items()
                if layer.bits == 16 and layer.group_bits is None)
    whole += sum(rows * cols * 2 for fqn, (rows, cols) in case.model.shapes.items() if fqn not in true.layers)
    assert facts["bytes"]["linears"] + whole == true.stored_bits // 8
    assert sum(array.nbytes for module in packed for name, array in module.named_buffers()
               if name in module.names) == facts["bytes"]["linears"]


@pytest.mark.parametrize("row", ("TaCQ", "SPQR-native", "bnb-nf4", "TALK-stitched"))
def test_a_plain_export_loads_in_transformers(cases, row, tmp_path):
    case = of_row(cases, row)
    facts = export(case, tmp_path / "out", "hf", command="python run_taq_icml.py --export out")
    contents_of(case, plan(case))
    wanted = logits(case.model.module)
    case.model.originals.restore()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted)
    card = (tmp_path / "out" / "README.md").read_text()
    assert case.method.name in card and "as much memory" in card and "Not measured yet" in card
    assert "python run_taq_icml.py --export out" in card
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["bits"]["stored"] == facts["bits"]["stored"] and "model.safetensors" in told["files"]
    assert not list((tmp_path / "out").glob("*.bin")) + list((tmp_path / "out").glob("*.pt"))


@pytest.mark.parametrize("kind", ("hf", "packed"))
def test_the_exported_folder_answers_as_the_cell_did(kind, tiny_folder, tmp_path, capsys):
    where = where_of(tiny_folder, tmp_path) | {"tolerance": 0.05, "calib_tokens": 400}
    row = "TaCQ[act_bits=8]" if kind == "packed" else "TaCQ"
    assert main(flags(**where, methods=(row,))) == 0
    cell = next(r for r in load_results(tmp_path / "results") if r.name == row)
    assert main([*flags(**where, methods=(row,)), "--export", str(tmp_path / "out"), "--format", kind]) == 0
    assert f"{cell.bits.average:.3f} stored bits" in capsys.readouterr().out
    assert f"| {row} |" in (tmp_path / "out" / "README.md").read_text()  # with what the cell measured
    again = where | {"models": (str(tmp_path / "out"),), "results_dir": str(tmp_path / "again")}
    assert main(flags(**again, methods=("fp16",))) == 0
    full, = load_results(tmp_path / "again")
    assert [s.as_plain() for s in load_samples(full)] == [s.as_plain() for s in load_samples(cell)]


def test_the_best_row_by_the_results(tiny_folder, tmp_path, capsys):
    where = where_of(tiny_folder, tmp_path) | {"tolerance": 0.05, "calib_tokens": 400}
    assert main([*flags(**where, methods=("TaCQ",)), "--export", "best", str(tmp_path / "out")]) == 2
    assert "run the same command without --export first" in capsys.readouterr().err
    assert main(flags(**where, methods=("TaCQ",))) == 0
    assert main([*flags(**where, methods=("TaCQ",)), "--export", "best", str(tmp_path / "out")]) == 0
    results = [r for r in load_results(tmp_path / "results") if r.avg_bits is not None]
    best = max(results, key=lambda r: r.metrics["gold_loglik"].value)
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["made_of"]["method"]["name"] == best.name
    assert told["row"]["metrics"]["gold_loglik"]["value"] == best.metrics["gold_loglik"].value


def test_several_rows_have_a_folder_each(tiny_folder, tmp_path):
    where = where_of(tiny_folder, tmp_path) | {"tolerance": 0.05, "calib_tokens": 400}
    assert main([*flags(**where, methods=("uniform", "bnb-nf4")), "--export", str(tmp_path / "out")]) == 0
    cases = cases_of(**GRID | where | {"methods": ("uniform", "bnb-nf4")})
    names = {folder_name(case) for case in cases if case.method.name in ("uniform", "bnb-nf4")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(("row", "kind", "said"), [
    ("TaCQ", "compressed-tensors", "cannot hold TaCQ, which keeps single weights at more bits; formats that can: hf"),
    ("uniform", "compressed-tensors", "has zero points (uniform[symmetric=true] has none)"),
    ("TALK", "mlx", "keeps single weights"), ("SqueezeLLM-native", "gguf", "stores the form 'codebook'"),
    ("uniform[act_bits=8,kv_bits=8]", "hf", "quantizes activations"),
    ("uniform", "gguf", "--levels"), ("TAQ", "onnx", "use one of: hf, packed, compressed-tensors, mlx, gguf")])
def test_what_a_format_cannot_hold_is_refused_before_any_work(cases, row, kind, said, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.stages.export.plan", None)
    with pytest.raises(UserError) as error:
        export(of_row(cases, row), tmp_path / "out", kind)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_export_is_no_dry_run(tmp_path, capsys):
    assert main(["--run_type", "demo", "--export", str(tmp_path / "out"), "--dry_run"]) == 2
    assert "give one of them" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_hub_token_is_in_no_command():
    words = ["--export", "out", "--hf_token", "hf_secret", "--method", "TAQ", "--hf_token=hf_secret"]
    assert without_token(words) == ["--export", "out", "--method", "TAQ"]


@pytest.mark.parametrize("kind", ("packed", "compressed-tensors", "gguf"))
def test_full_precision_exports_too(cases, kind, tmp_path):
    facts = export(of_row(cases, "fp16"), tmp_path / "out", kind)
    assert facts["bytes"]["linears"] == facts["bytes"]["counted"] == 0
    if kind == "compressed-tensors":
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert torch.equal(logits(model), logits(of_row(cases, "fp16").model.module))


def test_a_folder_that_is_there_is_not_written_into(cases, tmp_path):
    with pytest.raises(UserError, match="is there already"):
        export(of_row(cases, "uniform"), tmp_path, "hf")


def test_an_export_that_fails_leaves_nothing(cases, tmp_path, monkeypatch):
    def broken(folder, contents):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    monkeypatch.setattr("quantization.packing.formats.hf.write", broken)
    with pytest.raises(KeyboardInterrupt):
        export(of_row(cases, "uniform"), tmp_path / "out", "hf")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def good(cases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "out"
    export(of_row(cases, "TaCQ"), folder, "packed")
    return folder


@pytest.mark.parametrize("fault", ("cut", "edited", "missing", "foreign", "mixed", "no json", "other version"))
def test_an_export_that_is_not_as_written_is_refused_with_the_file(good, cases, fault, tmp_path, tiny_folder, capsys):
    folder = tmp_path / "out"
    shutil.copytree(good, folder)
    weights = folder / "model.safetensors"
    named = "model.safetensors"
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "edited":
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(data)
    elif fault == "missing":
        weights.unlink()
    elif fault == "foreign":
        (folder / "export.json").unlink()
        named = "no packed export"
    elif fault == "mixed":
        export(of_row(cases, "uniform"), tmp_path / "other", "packed")
        shutil.copy(tmp_path / "other" / "packed.json", folder)
        named = "packed.json"
    else:
        told = json.loads((folder / "export.json").read_text())
        told["export_version"] = 99
        (folder / "export.json").write_text("{" if fault == "no json" else json.dumps(told))
        named = "export.json"
    with pytest.raises(UserError) as error:
        load_packed(folder)
    assert named in str(error.value) and "\n" not in str(error.value)
    if fault == "foreign":
        return
    assert main(["--model", str(folder), "--method", "fp16", "--dataset", "mmlu_pro", "--results_dir",
                 str(tmp_path / "r"), "--cache_dir", str(tmp_path / "c")]) == 2
    assert named in capsys.readouterr().err


def test_an_edited_card_is_no_fault(good, tmp_path):
    shutil.copytree(good, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("mine")
    load_packed(tmp_path / "out")


def test_an_export_is_not_quantized_again(good, tmp_path, capsys):
    assert main(["--model", str(good), "--method", "uniform", "--dataset", "mmlu_pro", "--results_dir",
                 str(tmp_path / "r"), "--cache_dir", str(tmp_path / "c")]) == 2
    assert "was exported" in capsys.readouterr().err


def test_what_the_store_says_of_the_weights_is_what_is_exported(cases, tmp_path):
    case = of_row(cases, "SPQR-native")
    known = true_plan(case, plan(case))[0]
    facts = export(case, tmp_path / "out", "packed")
    assert facts["bits"]["stored"] == known.stored_bits
