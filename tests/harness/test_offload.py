"""Rows of a model whose blocks are offloaded: the same results under the same keys, and less memory foreseen."""

import pytest
import torch

from core.errors import UserError
from core.offload import Offload
from harness.api import score
from harness.forecast.disk import disk_bytes
from harness.forecast.limits import check_fits
from harness.forecast.memory import memory
from harness.forecast.preflight import preflight
from harness.forecast.time import Costs
from harness.stages.cell import compute_cell
from tests.harness.bench import case_of, cases_of

ROWS = [("uniform", {}), ("TAQoS", {"kl_docs": 3}), ("TaCQ", {}), ("SPQR", {}), ("SqueezeLLM-native", {}),
        ("THRIFT", {}), ("LIG", {"lig_docs": 1, "ig_steps": 2}), ("heads-dynamic-native", {"circuit_docs": 2}),
        ("uniform", {"transform": ("smooth",), "act_bits": (4,), "act_keep": (0.25,)}),
        ("TaCQ", {"grad_dtype": "bf16", "corrupt": "rtn"}), ("TaCQ-weight", {"quantizer": "rtn"})]


def of(tiny, root, **changes) -> dict:
    return dict(models=(str(tiny),), datasets=("mmlu_pro",), calib_size=6, eval_size=8, calib_tokens=300,
                calib_window=64, avg_bits=(4.75,), group_size=32, quantizer="gptq", num_fewshot=0, score_docs=4,
                max_new_tokens=4, batch_tokens=600, cache_dir=str(root / "cache"), results_dir=str(root / "results"),
                device="cpu", threads=1) | changes


@pytest.mark.parametrize("name, settings", ROWS, ids=[f"{name} {' '.join(more)}".strip() for name, more in ROWS])
def test_a_row_is_the_same_under_the_same_keys(tiny_folder, tmp_path, copies, name, settings):
    plain, apart = (case_of(name, methods=(name,), **of(tiny_folder, tmp_path / offload, **settings, offload=offload))
                    for offload in ("off", "disk"))
    (result, samples), (same, asked) = map(compute_cell, (plain, apart))
    assert result.ok and (same.stages, same.metrics, same.bits) == (result.stages, result.metrics, result.bits)
    assert asked == samples and apart.model.module.offload.running == [0] * len(apart.model.blocks)
    assert not list((tmp_path / "disk" / "cache" / "offload").iterdir())


def test_a_model_whose_linears_are_not_the_checkpoints_can_be_offloaded_too(tmp_path):
    """Fused experts, through the grid's solver and gradients."""
    from benchmarks.families import save
    from benchmarks.tiny_families import tiny_model

    save(tiny_model("mixtral"), tmp_path / "mixtral")
    found = [compute_cell(case_of("TaCQ", methods=("TaCQ",), **of(
        tmp_path / "mixtral", tmp_path / offload, group_size=8, avg_bits=(5.25,), tolerance=0.9, calib_tokens=128,
        max_length=200, offload=offload)))[0] for offload in ("off", "disk")]
    assert found[0].ok and found[0].metrics == found[1].metrics and found[0].stages == found[1].stages


@pytest.mark.parametrize("changes, said", [
    ({"methods": ("circuit",), "offload": "disk"},
     "circuit takes gradients of what lies inside blocks, which --offload disk does not hold"),
    ({"methods": ("TAQ",), "offload": "cpu"}, "--offload cpu has no meaning without a GPU"),
    ({"methods": ("TAQ",), "offload": "somewhere"}, "--offload is 'somewhere'; use one of: off, cpu, disk")])
def test_what_cannot_be_offloaded_is_refused_before_any_work(tiny_folder, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        preflight(cases_of(**of(tiny_folder, tmp_path, **changes)))


def test_blocks_are_offloaded_from_one_device(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("core.placement.pick_device", torch.device)
    with pytest.raises(UserError, match="--offload is 'cpu' and --grad_device names 2 devices"):
        cases_of(**of(tiny_folder, tmp_path, offload="cpu", grad_device="cuda:0,1"))


def test_a_function_refuses_it_too_and_a_finished_row_stands(tiny_folder, tmp_path):
    case = case_of("circuit", methods=("circuit",), **of(tiny_folder, tmp_path, circuit_docs=2, ig_steps=2))
    with pytest.raises(UserError, match="--offload disk does not hold"):
        score(str(tiny_folder), "circuit", "mmlu_pro", **{name: value for name, value in of(
            tiny_folder, tmp_path, offload="disk").items() if name not in ("models", "datasets")})
    assert compute_cell(case)[0].ok
    (tmp_path / "results").mkdir(exist_ok=True)
    cases = cases_of(**of(tiny_folder, tmp_path, methods=("circuit",), circuit_docs=2, ig_steps=2, offload="disk"))
    only = [case for case in cases if case.method.name == "circuit"]
    preflight(cases, only=only, writes=False)


@pytest.mark.parametrize("name", ("TALK", "THRIFT-native", "TAQO-oracle"))
@pytest.mark.slow
def test_rows_that_tune_search_and_ask(tiny_folder, tmp_path, copies, name):
    test_a_row_is_the_same_under_the_same_keys(tiny_folder, tmp_path, copies, name, {"oracle_docs": 3})


def test_no_more_is_at_work_than_was_foreseen(tiny_folder, tmp_path, monkeypatch):
    """A device that has room for what --dry_run says and not a byte more: parameters at work, in every stage."""
    case = case_of("TaCQ", methods=("TaCQ",), **of(tiny_folder, tmp_path, dtype="bf16", offload="disk"))
    room = {stage.name: stage.weights for stage in memory(case)}
    outside = case.model.sizes.parameters - case.model.sizes.in_blocks
    brought, most = Offload._brought, {4: 0, 2: 0}

    def see(self, rest):
        there = brought(self, rest).clone()
        if there.ndim == 2:  # the last of its block that is brought, or not
            working = [p for own, running in zip(self.parameters, self.at_rest) if running for p in own]
            size = there.element_size()
            most[size] = max(most[size], size * (sum(p.numel() for p in working) + outside))
        return there

    monkeypatch.setattr(Offload, "_brought", see)
    assert compute_cell(case)[0].ok
    assert most == {4: room["gradients are taken"], 2: room["questions are asked"]}


@pytest.fixture
def foreseen(tiny_folder, tmp_path, monkeypatch):
    """The stages of TaCQ's row on a GPU that only has a name, by how it is offloaded."""
    def stages(offload: str, **changes) -> dict:
        case = case_of("TaCQ", methods=("TaCQ",), **of(tiny_folder, tmp_path, **{"dtype": "bf16"} | changes,
                                                      offload=offload))
        gpu = torch.device("cuda:0")
        case.model.device, case.model.eval_device, case.model.grad_devices = gpu, gpu, (gpu,)
        return {"case": case} | {stage.name: stage for stage in memory(case)}
    return stages


def test_the_largest_block_stands_for_all_on_the_device(foreseen):
    whole, apart, disk = map(foreseen, ("off", "cpu", "disk"))
    d = whole["case"].model.sizes
    assert d.in_blocks == d.blocks * d.block  # all blocks of it are alike
    rest = d.parameters - d.in_blocks
    asking = "questions are asked"
    assert whole[asking].weights == 2 * d.parameters and apart[asking].weights == 2 * (rest + d.block)
    taken = "gradients are taken"
    assert whole[taken].weights == 4 * d.parameters and apart[taken].weights == 4 * (rest + d.block)
    assert apart[taken].activations < whole[taken].activations
    # at rest on the CPU, beside the linears as loaded; in files neither is counted, nor what is as large
    assert apart[asking].originals == whole[asking].originals + 2 * d.in_blocks and disk[asking].originals == 0
    assert whole[taken].scores == apart[taken].scores > 0 and disk[taken].scores == 0
    assert disk["weights are loaded"].originals == 2 * d.parameters  # the checkpoint is in float32
    lazily = foreseen("disk", dtype="fp32")
    assert lazily["weights are loaded"].originals == 4 * rest


def test_a_card_that_is_too_small_by_a_byte_is_large_enough_when_blocks_are_offloaded(foreseen, monkeypatch):
    whole, apart = foreseen("off"), foreseen("cpu")
    size = type("Card", (), {"total_memory": max(stage.device for name, stage in whole.items() if name != "case") - 1})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    with pytest.raises(UserError, match="the memory of cuda:0"):
        check_fits([whole["case"]])
    check_fits([apart["case"]])


def test_files_count_on_the_disk_and_a_pass_through_the_blocks_in_the_time(tiny_folder, tmp_path):
    plain, apart = (cases_of(**of(tiny_folder, tmp_path, methods=("TaCQ",), offload=offload))
                    for offload in ("off", "disk"))
    d = plain[0].model.sizes
    more = disk_bytes(list(apart)) - disk_bytes(list(plain))
    assert more == d.itemsize * (d.in_blocks + d.linears) + 4 * d.linears
    alone = [disk_bytes(list(cases_of(**of(tiny_folder, tmp_path, methods=("magnitude",), offload=offload))))
             for offload in ("off", "disk")]
    assert alone[1] - alone[0] == more  # its scores, without a pass
    case = next(case for case in apart if case.method.name == "TaCQ")
    costs = Costs(apart[0].model)
    with_run = costs.backward(case, ("abs",))
    apart[0].model.offload = "off"
    assert costs.backward(case, ("abs",)) < with_run
