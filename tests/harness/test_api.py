"""The three functions for Python: five lines give a quantized model, its true bits and its samples; a grid finds what
they made.
"""

import pytest
import torch

from core.errors import UserError
from core.model import pick_dtype
from harness import evaluate, quantize, score
from report.records import load_results
from tests.harness.test_grid import run

CPU = torch.device("cpu")

SMALL = dict(eval_size=12, calib_size=6, quantizer="rtn", device="cpu", threads=1, max_new_tokens=4, batch_tokens=600)


@pytest.fixture
def asked(tiny_folder, tmp_path) -> dict:
    return SMALL | dict(cache_dir=str(tmp_path / "cache"), results_dir=str(tmp_path / "results"))


def test_five_lines_give_a_quantized_model_its_bits_and_its_samples(tiny_folder, tmp_path, asked):
    small = quantize(str(tiny_folder), "TAQ", "mmlu_pro", avg_bits=4.75, **asked)
    assert 4.74 < small.bits.average <= 4.75 and len(small.bits.per_linear) == 56
    originals = small.case.model.originals.weights
    assert any(not torch.equal(linear.weight.cpu(), originals[fqn]) for fqn, linear in small.case.model.linears.items())
    answers = evaluate(small)
    assert len(answers.samples) == 12 and 0 <= answers.metrics["accuracy"].value <= 1
    assert run(tiny_folder, tmp_path, "--method", "TAQ", "--score_docs", "256", datasets=("mmlu_pro",)) == 0
    cell = next(r for r in load_results(tmp_path / "results") if r.method.name == "TAQ")
    assert cell.stages == answers.result.stages and cell.metrics == answers.metrics
    assert cell.bits.average == small.bits.average


@pytest.mark.parametrize("method", ("magnitude", "GPTQ-native", "SqueezeLLM-native"))
def test_solved_rows_come_with_their_true_bits(tiny_folder, asked, method):
    asked |= {"quantizer": "gptq", "calib_tokens": 300}
    small = quantize(str(tiny_folder), method, "mmlu_pro", avg_bits=4.75, **asked)
    assert small.bits.stored == small.plan.stored_bits and (method != "magnitude" or small.bits.average <= 4.75)


def test_scores_are_those_of_the_scorer(tiny_folder, asked):
    given = score(str(tiny_folder), "TAQoS", "mmlu_pro", kl_docs=4, **asked)
    assert given.granularity == "layer" and len(given.values) == 56 and given.unit == "nats"
    with pytest.raises(UserError, match="method 'uniform' has no scorer"):
        score(str(tiny_folder), "uniform", "mmlu_pro", **asked)


def test_a_model_as_it_was_loaded_and_what_cannot_be(tiny_folder, asked):
    answers = evaluate(str(tiny_folder), "trivia_qa", **asked)
    assert answers.result.bits.average == torch.finfo(pick_dtype("auto", CPU)).bits and len(answers.samples) == 12
    with pytest.raises(UserError, match="needs a data set"):
        evaluate(str(tiny_folder), **asked)
    with pytest.raises(UserError, match="random stands for 2 cells"):
        score(str(tiny_folder), "random", "mmlu_pro", seeds=(1, 2), **asked)
    with pytest.raises(UserError, match="was quantized on mmlu_pro"):
        evaluate(quantize(str(tiny_folder), "uniform", "mmlu_pro", avg_bits=4.75, **asked), "trivia_qa")


@pytest.mark.parametrize("given,said", [
    ({"nosuch": 3}, "no grid has a field or setting 'nosuch'"), ({"score_doc": 3}, "did you mean 'score_docs'"),
    ({"calib_size": "a"}, "calib_size is 'a'; give int"), ({"avg_bits": "x"}, "avg_bits is .*; give a tuple of float"),
    ({"threads": "2"}, "threads is '2'; give int")])
def test_a_wrong_name_or_type_is_one_sentence(given, said, tiny_folder):
    with pytest.raises(UserError, match=said):
        quantize(str(tiny_folder), "TAQ", "trivia_qa", **given)
