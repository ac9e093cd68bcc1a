"""Transforms as an axis of the grid: rows, identities, seeds, and weights of one model at a time."""

import pytest

from core.errors import UserError
from harness.circuit import CircuitSettings, calibrate
from harness.circuit import quantize as quantize_circuit
from harness.cli.main import main
from harness.grid import cells_of
from harness.presets import build_grid
from harness.progress import Progress
from harness.stages.activations import kept, ranking
from harness.stages.case import open_cases
from report.records import load_results, load_samples
from report.tables.tables import group

COMMON = dict(datasets=("mmlu_pro",), calib_size=12, eval_size=12, device="cpu", threads=1, avg_bits=(4.75,),
              quantizer="rtn", score_docs=4)
LINE = ["--dataset", "mmlu_pro", "--calib_size", "12", "--eval_size", "12", "--device", "cpu", "--threads", "1",
        "--avg_bits", "4.75", "--quantizer", "rtn", "--score_docs", "4", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("transforms")
    where = ["--results_dir", str(root / "r"), "--cache_dir", str(root / "c")]
    assert main(["--model", str(tiny_folder), *where, *LINE, "--method", "uniform", "TAQ[transform=smooth]",
                 "--transform", "none", "smooth", "hadamard", "--act_bits", "16", "4", "--seeds", "0", "1"]) == 0
    return root


def loglik(result) -> list[float]:
    return [sample.gold_loglik for sample in load_samples(result)]


def test_every_row_comes_with_every_transform_and_rotations_with_every_seed(done):
    cells = {(r.name, r.seed): r for r in load_results(done / "r")}
    assert {("uniform", 0), ("uniform[transform=smooth]", 0), ("uniform[act_bits=4,transform=smooth]", 0),
            ("uniform[transform=hadamard]", 0), ("uniform[transform=hadamard]", 1), ("fp16[transform=hadamard]", 1),
            ("TAQ[act_bits=4,transform=smooth]", 0)} <= set(cells)
    assert ("uniform[transform=smooth]", 1) not in cells and ("TAQ", 0) not in cells
    assert len({r.model.revision for r in cells.values()}) == 1
    assert len({r.bits.average for r in cells.values() if r.name.startswith("uniform")}) == 1
    drawn = [loglik(cells[name, seed]) for name, seed in (
        ("uniform", 0), ("uniform[transform=smooth]", 0), ("uniform[transform=hadamard]", 0),
        ("uniform[transform=hadamard]", 1))]
    assert len(set(map(tuple, drawn))) == 4


def test_a_transform_alone_changes_no_answer(done):
    cells = {(r.name, r.seed): r for r in load_results(done / "r")}
    for name, seed in (("fp16[transform=smooth]", 0), ("fp16[transform=hadamard]", 0), ("fp16[transform=hadamard]", 1)):
        assert loglik(cells[name, seed]) == pytest.approx(loglik(cells["fp16", 0]), abs=1e-4)


def test_rows_of_all_transforms_stand_in_one_table(done):
    tables = group(load_results(done / "r"))
    assert len(tables) == 2
    plain = next(table for table in tables if "activations" not in table.title or "not stated" in table.title)
    rows = {row["method"]: row for row in plain.rows}
    assert {"fp16", "fp16[transform=hadamard]", "uniform", "uniform[transform=smooth]",
            "uniform[transform=hadamard]"} <= set(rows)
    assert rows["uniform[transform=hadamard]"]["u_loglik"] is not None


def test_the_same_command_computes_nothing_again(done, tiny_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in (done / "c").rglob("*") if path.is_file()}
    assert main(["--model", str(tiny_folder), "--results_dir", str(done / "r"), "--cache_dir", str(done / "c"), *LINE,
                 "--method", "uniform", "--transform", "none", "hadamard", "--seeds", "0", "1"]) == 0
    after = {path: path.stat().st_mtime_ns for path in (done / "c").rglob("*") if path.is_file()}
    assert before == after and "Loading" not in capsys.readouterr().out


def test_three_seeds_where_none_is_named(tiny_folder):
    given = dict(models=(str(tiny_folder),), **COMMON)
    rotated = build_grid("demo", **given, methods=("uniform",), transform=("none", "hadamard"))
    assert rotated.seeds == (42, 43, 44)
    assert build_grid("demo", **given, methods=("uniform[transform=hadamard]",)).seeds == (42, 43, 44)
    assert build_grid("demo", **given, methods=("uniform",), transform=("smooth",)).seeds == (42,)
    assert build_grid("demo", **given, methods=("uniform",), transform=("hadamard",), seeds=(5,)).seeds == (5,)
    names = [cell.method.name for cell in cells_of(rotated)]
    assert names == sorted(names, key=lambda name: "hadamard" in name) and names.count("fp16") == 1


def test_one_set_of_weights_is_in_memory_at_a_time_and_identities_differ(tiny_folder, tmp_path):
    grid = build_grid("demo", models=(str(tiny_folder),), methods=("uniform",), cache_dir=str(tmp_path / "c"),
                      results_dir=str(tmp_path / "r"), transform=("none", "smooth", "hadamard"), seeds=(1, 2), **COMMON)
    cases = open_cases(grid, None, Progress(1))
    models = {case.model.ref.transform: case.model for case in cases}
    assert len(models) == 4 and "" in models
    for model in models.values():
        assert model.module is not None
        assert [m for m in models.values() if "module" in m.__dict__] == [model]
    cases.release(grid.models[0])
    assert not [m for m in models.values() if "module" in m.__dict__]


@pytest.mark.parametrize("kind", ["smooth", "hadamard"])
def test_channels_that_stay_at_sixteen_bits_are_ranked_on_the_transformed_model(tiny_folder, tmp_path, kind):
    name = f"uniform[act_bits=4,act_keep=0.5,transform={kind}]"
    grid = build_grid("demo", models=(str(tiny_folder),), methods=("uniform[act_bits=4,act_keep=0.5]", name),
                      cache_dir=str(tmp_path / "c"), results_dir=str(tmp_path / "r"), seeds=(3,), **COMMON)
    plain, row = (case for case in open_cases(grid, None, Progress(1)) if "act_keep" in case.method.name)
    assert ranking(row).model is row.model and ranking(plain).model is plain.plain
    masks = kept(plain), kept(row)
    assert all(mask.sum() == len(mask) // 2 for of in masks for mask in of.values())
    assert any((masks[0][fqn] != masks[1][fqn]).any() for fqn in masks[0])
    assert "module" in row.model.__dict__, "it need not be loaded again"


def test_smooth_knows_what_it_was_calibrated_on(tiny_folder, tmp_path):
    def digest(**given):
        grid = build_grid("demo", models=(str(tiny_folder),), methods=("uniform[transform=smooth]",),
                          cache_dir=str(tmp_path / "c"), results_dir=str(tmp_path / "r"), **COMMON | given)
        return open_cases(grid, None, Progress(1))[-1].model.ref.transform

    assert digest() == digest() and len({digest(), digest(score_docs=5), digest(datasets=("code_mmlu",))}) == 3
    alpha = build_grid("demo", models=(str(tiny_folder),), methods=("uniform[smooth_alpha=0.7,transform=smooth]",),
                       cache_dir=str(tmp_path / "c"), results_dir=str(tmp_path / "r"), **COMMON)
    assert open_cases(alpha, None, Progress(1))[-1].model.ref.transform != digest()


@pytest.mark.parametrize("given, said", [
    ({"transform": ("spin",)}, "--transform is 'spin'; use one of: none, smooth, hadamard"),
    ({"transform": ()}, "--transform is empty; name at least one"),
    ({"methods": ("uniform[transform=turn]",)}, r"uniform\[transform\] is 'turn'; use one of"),
    ({"methods": ("uniform[smooth_alpha=2]",)}, r"uniform\[smooth_alpha\] is 2; it must be from 0 to 1")])
def test_what_cannot_be_is_one_sentence(tiny_folder, given, said):
    with pytest.raises(UserError, match=said):
        build_grid("demo", models=(str(tiny_folder),), **COMMON | {"methods": ("uniform",)} | given)


def test_a_checkpoint_of_a_transformed_model_is_refused(tiny_folder, tmp_path):
    where = dict(cache_dir=str(tmp_path / "c"), device="cpu", threads=1, calib_size=4, eval_size=4)
    calibrate(CircuitSettings(model=str(tiny_folder)), tmp_path / "scores.safetensors", **where)
    with pytest.raises(UserError, match="a checkpoint cannot hold what --transform folds in"):
        quantize_circuit(str(tiny_folder), tmp_path / "scores.safetensors", tmp_path / "out", CircuitSettings(),
                         transform=("smooth",), **where)
