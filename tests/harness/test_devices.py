"""Gradients and questions on devices of their own: what is computed where, and what goes by its key."""

from dataclasses import replace

import pytest
import torch

from core.errors import UserError
from core.registry import SCORERS
from harness.grid import with_methods
from harness.jobs.launch import check_place
from harness.jobs.options import Options
from harness.presets import build_grid
from harness.progress import Progress
from harness.stages.case import open_cases
from harness.stages.cell import compute_cell, run_cell
from harness.stages.gradients import gradients_key
from harness.stages.model import LazyModel
from harness.stages.samples import samples_key
from harness.stages.scores import run_scorer, scores_key
from harness.store.partial import Partial

ELSEWHERE = {"grad_device": "cuda:0,1", "eval_device": "cuda:1"}


def opened(tiny, root, method="TaCQ-absgrad", **changes):
    grid = build_grid("demo", models=(str(tiny),), datasets=("mmlu_pro",), calib_size=6, eval_size=8, calib_tokens=300,
                      calib_window=64, avg_bits=(4.75,), group_size=32, quantizer="rtn", num_fewshot=0,
                      cache_dir=str(root / "cache"), results_dir=str(root / "results"), device="cpu", **changes)
    return open_cases(with_methods(grid, (method,)), None, Progress(1))[0]


@pytest.fixture
def gpus(monkeypatch):
    """Devices that only have names."""
    monkeypatch.setattr("core.placement.pick_device", torch.device)
    monkeypatch.setattr("harness.stages.model.pick_device", torch.device)
    monkeypatch.setattr("harness.stages.model.machine", lambda device: "cuda:H100" if device.type == "cuda" else "cpu")


def test_every_stage_goes_by_the_device_that_it_runs_on(tiny_folder, tmp_path, gpus):
    here, there = opened(tiny_folder, tmp_path), opened(tiny_folder, tmp_path, **ELSEWHERE)
    assert here.model.machines == here.model.machine == here.model.eval_machine
    assert there.model.machines == f"{here.model.machine}, gradients on cuda:H100, questions on cuda:H100"
    keys = [(gradients_key(case, "abs"), samples_key(case, "p")) for case in (here, there)]
    (mine, asked), (theirs, asked_there) = keys
    assert mine[1]["machine"] == here.model.machine and theirs[1]["machine"] == "cuda:H100"
    assert "made_on" not in asked[1] and asked_there[1]["made_on"] == here.model.machine
    # on how many GPUs of a kind the blocks lie does not count
    assert gradients_key(opened(tiny_folder, tmp_path, grad_device="cuda:0"), "abs")[0] == theirs[0]


def test_the_model_is_there_for_its_stage_and_back_after(tiny_folder, tmp_path, monkeypatch):
    """Two names of the CPU: blocks have hooks while gradients are taken, and in no other stage."""
    case, placed = opened(tiny_folder, tmp_path), []
    case.model.grad_devices, case.model.eval_device = (torch.device("cpu"),) * 2, torch.device("cpu")
    on = LazyModel.on

    def watched(self, *devices):
        placed.append(len(devices))
        return on(self, *devices)

    monkeypatch.setattr(LazyModel, "on", watched)
    result, samples = compute_cell(case)
    assert placed == [2, 1] and result.ok and len(samples) == 8
    assert not any(block._forward_pre_hooks for block in case.model.blocks)
    other = opened(tiny_folder, tmp_path / "other")
    assert compute_cell(other)[0].metrics == result.metrics


@pytest.mark.parametrize("method", ["heads-attribution", "heads-EAP-IG", "circuit", "LIG", "LIG-channel"])
def test_scorers_that_take_gradients_take_them_there(tiny_folder, tmp_path, monkeypatch, method):
    few = {"circuit_docs": 2, "lig_docs": 1, "ig_steps": 2}
    here, there = opened(tiny_folder, tmp_path, method, **few), opened(tiny_folder, tmp_path, method, **few)
    there.model.grad_devices, placed, on = (torch.device("cpu"),) * 2, [], LazyModel.on
    monkeypatch.setattr(LazyModel, "on", lambda self, *devices: placed.append(len(devices)) or on(self, *devices))
    spec = SCORERS.get(method)
    want, found = (run_scorer(case, spec, Partial(tmp_path / str(at))) for at, case in enumerate((here, there)))
    assert placed == [1, 2] and all(torch.equal(want.values[f], found.values[f]) for f in want.values)
    there.model.grad_machine = "cuda:H100"
    assert scores_key(there)[1]["machine"] == "cuda:H100" and scores_key(here)[1]["machine"] == here.model.machine


def test_devices_of_several_kinds_are_told_apart_by_their_number(tiny_folder, tmp_path, gpus):
    few, more = (opened(tiny_folder, tmp_path, grad_device=text).model.grad_machine for text in ("cuda:0,cpu",
                                                                                              "cuda:0,1,cpu"))
    assert few != more and few.startswith("cuda:H100+cpu")


def test_a_stored_record_says_where_this_run_computes(tiny_folder, tmp_path):
    """fp16's key knows no gradients; its record must still stand in the table of the rows that have them."""
    case = opened(tiny_folder, tmp_path, "fp16")
    (tmp_path / "results").mkdir()
    assert run_cell(case, tmp_path / "results").machine == case.model.machine
    again = opened(tiny_folder, tmp_path, "fp16")
    again.model.grad_machine = "cuda:H100"
    assert run_cell(again, tmp_path / "results").machine == f"{case.model.machine}, gradients on cuda:H100"


def test_naming_the_same_device_changes_no_key(tiny_folder, tmp_path):
    here, named = opened(tiny_folder, tmp_path), opened(tiny_folder, tmp_path, grad_device="cpu", eval_device="cpu")
    assert samples_key(here, "p") == samples_key(named, "p")
    assert gradients_key(here, "abs") == gradients_key(named, "abs")


@pytest.mark.parametrize("flag, text", [("device", "cuda:1"), ("grad_device", "cuda:0,1"), ("grad_device", "0,1"),
                                        ("eval_device", "cuda:0")])
def test_workers_that_see_one_gpu_each_take_no_numbers(tiny_folder, flag, text):
    grid = replace(build_grid("demo", models=(str(tiny_folder),)), **{flag: text})
    with pytest.raises(UserError, match=f"--{flag} {text} with --executor process .* use --{flag} cuda, and CUDA_V"):
        check_place(grid, Options(executor="process"))
