"""One linear measured, and a question of one's own: against plain computations on a tiny model."""

import json

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.model import pick_dtype
from harness.linear import concentration, examples, histogram, measure, one_linear
from harness.question import ask
from report.measured import Asked, Linear, asked_of, path_of, read_record, records, write_record

SIZES = {"calib_size": 6, "eval_size": 8}


@pytest.fixture(scope="module")
def record(tiny_folder, tmp_path_factory) -> Linear:
    root = tmp_path_factory.mktemp("linear")
    asked = asked_of({"model": str(tiny_folder), "dataset": "mmlu_pro", "avg_bits": 4.75,
                      "linear": "layers.1.mlp.down_proj"} | SIZES)
    return measure(asked, cache_dir=str(root), device="cpu")


def test_the_parts_are_those_of_the_formula(record, tiny_folder):
    from transformers import AutoModelForCausalLM

    weight = AutoModelForCausalLM.from_pretrained(tiny_folder).get_submodule(record.linear).weight.detach().float()
    assert record.shape == list(weight.shape) and sum(record.loaded) == sum(record.quantized) == weight.numel()
    for one in record.examples:
        assert one["weight"] == pytest.approx(float(weight[one["row"], one["column"]]), rel=1e-2)  # bf16
        moved = abs(one["weight"] - one["quantized"])
        assert one["qal"] == pytest.approx(one["gradient"] * moved, rel=1e-5)
        assert one["msg"] == pytest.approx(one["gradient"] * abs(one["weight"]), rel=1e-5)
        assert one["score"] == pytest.approx(one["qal"] * abs(one["weight"]), rel=1e-5)
    scores = [one["score"] for one in record.examples]
    assert scores == sorted(scores, reverse=True)


def test_kept_weights_are_those_of_the_plan(record):
    rows, columns = record.shape
    assert record.kept == sorted(set(record.kept)) and all(0 <= at < rows * columns for at in record.kept)
    kept = {divmod(at, columns) for at in record.kept}
    assert all(one["kept"] == ((one["row"], one["column"]) in kept) for one in record.examples)
    assert len(record.kept) <= record.kept_in_model < record.weights_in_model
    errors = [level["error"] for level in record.levels]
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[-1] > 0
    assert all(level["stored"] > level["bits"] for level in record.levels)


def test_histogram_and_concentration_against_closed_forms():
    weight = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    edges, before, after = histogram(weight, weight + 1)
    assert edges[0] == 0 and edges[-1] == 4 and sum(before) == sum(after) == 4
    flat = histogram(torch.zeros(2, 2), torch.zeros(2, 2))
    assert sum(flat[1]) == 4 and np.isfinite(flat[0]).all()
    shares = dict(map(tuple, concentration(torch.tensor([[4.0, 3.0], [2.0, 1.0]]))))
    assert shares[0.25] == pytest.approx(0.4) and shares[0.5] == pytest.approx(0.7) and shares[1.0] == 1
    assert all(share == 0 for _, share in concentration(torch.zeros(2, 2)))
    few = examples(weight, weight, weight, score=weight, keep=None)
    assert [one["score"] for one in few[:4]] == [3, 2, 1, 0] and not any(one["kept"] for one in few)


def test_a_linear_by_the_end_of_its_name():
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    assert one_linear("1.mlp.up_proj", names) == names[1]
    with pytest.raises(UserError, match="is the end of 2 names"):
        one_linear("up_proj", names)
    with pytest.raises(UserError, match="is no linear of this model"):
        one_linear("nothing", names)


def test_records_are_read_back_and_damage_is_named(record, tmp_path):
    path = write_record(tmp_path, record)
    assert path == path_of(tmp_path, Linear, record.asked) and read_record(path, Linear) == record
    assert records(tmp_path, Linear) == ([record], [])
    for text in ("{", "[]", json.dumps({"schema": 1}), json.dumps({"schema": 9})):
        path.write_text(text)
        read, damaged = records(tmp_path, Linear)
        assert not read and len(damaged) == 1 and str(path) in damaged[0]
    assert read_record(tmp_path / "none.json", Linear) is None


@pytest.mark.parametrize(("name", "value"), [
    ("shape", [10]), ("shape", [0, 4]), ("edges", []), ("kept", ["x"]), ("kept", [-1]), ("kept", [10**9]),
    ("examples", []), ("examples", [{"row": 1}]), ("ranks", []), ("ranks", [[2, 1]]), ("levels", [{"bits": 2}]),
    ("levels", []), ("quantized", [1]), ("loaded", ["x"])])
def test_inner_parts_that_are_off_are_one_sentence(record, tmp_path, name, value):
    path = write_record(tmp_path, record)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    read, damaged = records(tmp_path, Linear)
    assert not read and len(damaged) == 1 and "is not as this version writes it" in damaged[0]


def test_a_question_is_answered_by_both_models(tiny_folder, tmp_path):
    asked = asked_of({"model": str(tiny_folder), "method": "TaCQ", "dataset": "mmlu_pro", "avg_bits": 4.75,
                      "question": "  What is it?  "} | SIZES)
    told = ask(asked, cache_dir=str(tmp_path), device="cpu")
    assert told.prompt == "Question: What is it?\nAnswer:" and told.average <= 4.75 and told.tokens > 10
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=pick_dtype("auto", torch.device("cpu"))).eval()
    ids = torch.tensor([tokenizer(told.prompt)["input_ids"]])
    made = model.generate(ids, max_new_tokens=told.longest, do_sample=False)[0, ids.shape[1]:]
    assert told.loaded == tokenizer.decode(made, skip_special_tokens=True).strip()
    assert read_record(write_record(tmp_path, told), Asked) == told


@pytest.mark.parametrize(("question", "said"), [(" ", "is empty"), ("x" * 5000, "has 5,000 characters"),
                                                ("x" * 3000, "tokens and an answer up to")])
def test_questions_that_cannot_be_asked(tiny_folder, tmp_path, question, said):
    with pytest.raises(UserError, match=said):
        ask({"model": str(tiny_folder), "method": "uniform", "dataset": "mmlu_pro", "avg_bits": 4.75,
             "question": question} | SIZES, cache_dir=str(tmp_path), device="cpu")
