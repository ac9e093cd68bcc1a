"""A cell on its way down: which rooms it enters, and what it carries (docs/ARCHITECTURE.md)."""

import inspect
import os
import sys
from pathlib import Path

import pytest

import harness
from core.types import Plan
from harness.stages import base_quantized, cell, gradients, plan, result, samples, scores, weights
from harness.stages.case import Case
from harness.stages.plan import Planned
from tests.harness.bench import case_of

HARNESS = str(Path(harness.__file__).parent) + os.sep
SHARED = ("store", "progress.py", "stages/case.py", "stages/model.py")


def rooms_down(frame) -> tuple[str, ...]:
    """The harness's files whose functions are at work, outermost first; those in a row count once.

    What all rooms share does not count, nor a function that a room hands down to be called (of a scorer's context).
    """
    files: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(HARNESS) and "<locals>" not in code.co_qualname:
            file = code.co_filename[len(HARNESS):]
            if not file.startswith(SHARED) and file not in files[-1:]:
                files.append(file)
        frame = frame.f_back
    return tuple(reversed(files))


@pytest.mark.parametrize("name", ["TAQ", "TaCQ", "TaCQ-native", "SPQR-native", "SqueezeLLM-native", "TAQO-oracle"])
def test_no_room_is_entered_twice_on_the_way_down(tiny_folder, tmp_path, name):
    case = case_of(name, models=(str(tiny_folder),), methods=(name,), datasets=("mmlu_pro",), calib_size=6, eval_size=8,
                   device="cpu", threads=1, avg_bits=(4.75,), quantizer="gptq", cache_dir=str(tmp_path / "cache"),
                   oracle_docs=2, keep_ratio=(0.01,))
    ways: set[tuple[str, ...]] = set()

    def look(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(HARNESS):
            ways.add(rooms_down(frame))

    sys.setprofile(look)
    try:
        done = cell.run_cell(case, tmp_path)
    finally:
        sys.setprofile(None)
    assert done.ok, done.error
    twice = {way for way in ways if len(set(way)) < len(way)}
    assert not twice, "\n".join(" > ".join(way) for way in sorted(twice)[:5])
    assert len(ways) > 8


def test_a_stage_takes_a_case_and_what_the_stage_before_left():
    """At most one object says what is asked; the other one is the work of the stage before."""
    stages = (scores.scores, plan.plan, samples.samples, weights.hold_weights, weights.true_plan, gradients.gradients,
              base_quantized.base_quantized, cell.compute_cell, cell.cell_key, result.questions)
    for stage in stages:
        kinds = [p.annotation for p in inspect.signature(stage).parameters.values()]
        assert kinds[0] is Case and set(kinds[1:]) <= {Planned, Plan, str}, stage
