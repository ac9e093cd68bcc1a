"""A choice finds the results of its own command, and no others."""

from dataclasses import replace

import pytest

from app.choice import BITS, KEPT, SIZES, Choice, methods, reads_kept
from core.errors import UserError
from harness.cli.main import main
from report.records import load_results
from tests.app.conftest import SIZES as SMALL


@pytest.mark.parametrize(("method", "kept", "row"), [("TaCQ-native", 0.4, "TaCQ-native@0.004"), ("bnb-nf4", None, None),
                                                     ("W4A4-native", None, "W4A4-native"), ("equal", None, "equal")])
def test_its_row_is_named_as_the_harness_names_it(method, kept, row):
    choice = Choice("smollm2-135m", "mmlu_pro", method, 4.75, kept, 8, 8)
    try:
        assert choice.row == (row or method)
    except UserError as error:  # bitsandbytes is not there
        assert method == "bnb-nf4" and "bitsandbytes" in str(error)


def test_a_command_s_results_are_found_and_those_of_others_are_not(tiny_folder, tmp_path):
    """The command is run as it is shown, with kept weights of its own."""
    choice = Choice(str(tiny_folder), "mmlu_pro", "TaCQ-native", 4.75, 0.4, 8, 8)
    job = choice.job(str(tmp_path / "results"), str(tmp_path / "cache"))
    assert main([*job.words[1:], "--device", "cpu"]) == 0
    every = load_results(tmp_path / "results")
    assert choice.result(every).name == "TaCQ-native@0.004" and len(choice.results(every)) == len(every) == 4
    for other in (replace(choice, kept=0.5), replace(choice, avg_bits=5.0), replace(choice, calib_size=16),
                  replace(choice, method="TaCQ", kept=None), replace(choice, model="other")):
        assert other.result(every) is None
    changed = [replace(r, settings=r.settings | {"group_size": 64}) for r in every]
    assert choice.result(changed) is None and choice.result([replace(r, run_type="full") for r in every]) is None


def test_what_can_be_chosen(small):
    assert BITS[0] == "2" and BITS[-1] == "8" and "3.25" in BITS and len(BITS) == 25
    assert KEPT[0] == "0.1" and KEPT[-1] == "2" and all(int(size) >= 8 for size in SIZES)
    assert [name for name in methods() if reads_kept(name)] == ["TaCQ-native"] and "fp16" not in methods()
    assert SMALL["calib_size"] in map(int, SIZES)
    with pytest.raises(UserError, match="starts with a dash"):
        Choice("--help", "mmlu_pro", "TaCQ", 4.75, None, 8, 8).job("r", "c")
