"""A plugin must not poison others: what it leaves in the model is refused and removed, and its exit is a failed cell.
"""

import pytest
import torch

from core.registry import ALLOCATORS, METHODS, QUANTIZERS, SCORERS, allocator, method, quantizer, scorer
from core.types import Scores
from harness.stages.scores import check_scores
from harness.stages.untouched import SMALL, Untouched, untouched
from report.records import load_results
from tests.harness.test_grid import run
from tests.tiny import tiny_model


@pytest.fixture
def registries(monkeypatch):
    """What a test registers goes when it ends."""
    for registry in (SCORERS, METHODS, ALLOCATORS, QUANTIZERS):
        monkeypatch.setattr(registry, "_items", dict(registry._items))


def leave_hook(model):
    model.get_input_embeddings().register_forward_hook(lambda *_: None)


def leave_other_buffer(model):
    model.register_buffer("left", torch.zeros(1))


def leave_training_mode(model):
    model.train()


def leave_gradients(model):
    next(model.parameters()).requires_grad_(True)


def leave_forward(model):
    model.forward = lambda *_, **__: None


LEFT = {leave_hook: "1 hooks more on model.embed_tokens", leave_other_buffer: "other buffers in the model",
        leave_training_mode: "training mode",
        leave_gradients: "requires_grad or a gradient on", leave_forward: "another forward in the model"}


@pytest.mark.parametrize("leave", LEFT)
def test_what_is_left_in_a_model_is_refused_and_removed(leave):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=f"it left {LEFT[leave]}"), untouched(model, "it"):
        leave(model)
    with untouched(model, "it"):  # nothing is left of it
        pass
    assert not model.training and "left" not in dict(model.named_buffers())
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(KeyError), untouched(model, "it"):  # an error of its own goes first
        leave(model)
        raise KeyError
    with untouched(model, "it"):
        pass


@pytest.mark.parametrize("leave", (leave_hook, leave_training_mode))
def test_a_scorer_that_leaves_something_fails_alone(leave, registries, tiny_folder, tmp_path):
    """The cells after it are those of a grid without it, to the byte."""
    @scorer("leaves_test", granularity="layer", needs=())
    def leaves(ctx):
        leave(ctx.model)
        return Scores("layer", ctx.spread([1.0] * len(ctx.blocks)), "none")

    method("leaves_test", scorer="leaves_test")
    assert run(tiny_folder, tmp_path / "with", "--method", "leaves_test", "TAQ", datasets=("mmlu_pro",)) == 1
    assert run(tiny_folder, tmp_path / "without", "--method", "TAQ", datasets=("mmlu_pro",)) == 0
    results = {r.method.name: r for r in load_results(tmp_path / "with" / "results")}
    assert "it must leave the model as it found it" in results["leaves_test"].error and results["TAQ"].ok
    lines = {root: {p.name: p.read_bytes() for p in (tmp_path / root / "results").glob("*.jsonl")}
             for root in ("with", "without")}
    assert lines["with"] == lines["without"]


@pytest.mark.parametrize("where", ("scorer", "allocator", "quantizer"))
def test_leaving_the_program_is_a_failed_cell(where, registries, tiny_folder, tmp_path, capsys):
    @scorer("leaver_test", granularity="layer", needs=())
    def leaver(ctx):
        raise SystemExit(0)

    @allocator("leaver_test")
    def leaver_too(ctx):
        raise SystemExit

    @quantizer("leaver_test")
    def leaver_last(weight, layer):
        raise SystemExit(3)

    name = {"scorer": "leaver_test+knapsack+rtn", "allocator": "equal+leaver_test+rtn",
            "quantizer": "equal+knapsack+leaver_test"}[where]
    assert run(tiny_folder, tmp_path, "--method", name, datasets=("mmlu_pro",)) == 1
    results = {r.method.name: r for r in load_results(tmp_path / "results")}
    assert results[name].error.startswith("SystemExit: ") and "not end the program" in results[name].error
    assert results["uniform"].ok
    assert "uniform" in capsys.readouterr().out


def test_keys_that_cannot_be_made_fail_their_cell_and_no_other(registries, tiny_folder, tmp_path, monkeypatch):
    import harness.stages.scores

    @scorer("keyless_test", granularity="layer", needs=(), params=("seed",))
    def keyless(ctx):
        return Scores("layer", ctx.spread([1.0] * len(ctx.blocks)), "none")

    real = harness.stages.scores.score_params

    def params(case, names):
        if case.method.name == "keyless_test":
            raise ZeroDivisionError("a key of its own")
        return real(case, names)

    method("keyless_test", scorer="keyless_test")
    monkeypatch.setattr(harness.stages.scores, "score_params", params)
    monkeypatch.setattr("harness.forecast.sizes.finished", lambda case: False)
    monkeypatch.setattr("harness.jobs.launch.preflight", lambda cases: None)
    assert run(tiny_folder, tmp_path, "--method", "keyless_test", datasets=("mmlu_pro",)) == 1
    results = {r.method.name: r for r in load_results(tmp_path / "results")}
    assert results["keyless_test"].error == "ZeroDivisionError: a key of its own" and results["random"].ok


def test_needs_of_a_quantizer_are_checked():
    with pytest.raises(ValueError, match=r"quantizer 'needy_test': needs \('hessians',\) are not among"):
        quantizer("needy_test", needs=("hessians",))


SHAPES = {"a": (4, 12)}
BAD = [("group", torch.zeros(4), None), ("group", torch.zeros(3, 2), None), ("group", torch.zeros(1, 13), None),
       ("group", torch.zeros(1, 5), None),
       ("linear", torch.zeros(2), (2, 4, 8)), ("element", torch.zeros(4, 12), (2, 4)),
       ("channel", torch.zeros(4), None), ("layer", torch.tensor(float("nan")), None)]
GOOD = [("group", torch.zeros(1, 3), None), ("group", torch.zeros(4, 12), None),
        ("group", torch.zeros(1, 4, 2), (2, 4)),
        ("linear", torch.zeros(3), (2, 4, 8)), ("channel", torch.zeros(12), None)]


@pytest.mark.parametrize(("granularity", "value", "levels"), BAD)
def test_scores_of_another_shape_are_refused(granularity, value, levels):
    spec = SCORERS.get("equal").__class__("s", None, granularity)
    with pytest.raises(ValueError, match="scorer 's': scores of a have shape"):
        check_scores(Scores(granularity, {"a": value}, "u", levels), spec, SHAPES)


@pytest.mark.parametrize(("granularity", "value", "levels"), GOOD)
def test_scores_of_the_right_shape_are_taken(granularity, value, levels):
    check_scores(Scores(granularity, {"a": value}, "u", levels), SCORERS.get("equal").__class__("s", None, granularity),
                 SHAPES)


def test_scores_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="returned dict; it must return"):
        check_scores({"a": 1}, SCORERS.get("equal"), SHAPES)


def scale_the_norm(model):
    model.norm.weight.data.mul_(5)


def scale_a_buffer(model):
    next(model.buffers()).mul_(3)


def scale_embeddings(model):
    model.get_input_embeddings().weight.data.mul_(2)


def put_another_module(model):
    model.norm = torch.nn.Identity()


@pytest.mark.parametrize("spoil", [scale_the_norm, scale_a_buffer, scale_embeddings, put_another_module])
def test_values_that_a_scorer_changes_are_put_back(spoil):
    model = tiny_model("llama").model
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).last_hidden_state
        with pytest.raises(ValueError, match="it left other"), untouched(model, "it"):
            spoil(model)
        with pytest.raises(KeyError), untouched(model, "it"):
            spoil(model)
            raise KeyError
        assert torch.equal(model(ids).last_hidden_state, before)


def test_a_model_that_cannot_be_put_back_is_loaded_again(monkeypatch):
    monkeypatch.setattr("harness.stages.untouched.SMALL", 100)
    model, loaded = tiny_model("llama").model, []
    with pytest.raises(ValueError, match="it left other values in embed_tokens"), \
            untouched(model, "it", lambda: loaded.append(1)):
        scale_embeddings(model)
    assert loaded == [1]


def test_linears_are_watched_without_a_copy():
    model, loaded = tiny_model("llama").model, []
    linear = model.layers[0].mlp.up_proj
    assert linear.weight.numel() < SMALL
    kept = {name for name, *_, copy in Untouched(model).values if copy is not None}
    assert "norm.weight" in kept and not any("proj" in name for name in kept)
    with pytest.raises(ValueError, match=r"it left other values in layers\.0\.mlp\.up_proj"), \
            untouched(model, "it", lambda: loaded.append(1)):
        linear.weight.data.mul_(2)
    assert loaded == [1]


@pytest.mark.parametrize("stop", [True, False])
def test_a_scorer_that_writes_into_weights_changes_no_later_cell(stop, registries, tiny_folder, tmp_path):
    @scorer("writer_test", granularity="layer", needs=())
    def writes(ctx):
        for linear in ctx.linears.values():
            linear.weight.data.mul_(0)
        if stop:
            raise RuntimeError("half-way")
        return Scores("layer", ctx.spread([1.0] * len(ctx.blocks)), "test")

    method("writer_test", scorer="writer_test")
    assert run(tiny_folder, tmp_path / "a", "--method", "TAQ", datasets=("mmlu_pro",)) == 0
    run(tiny_folder, tmp_path / "b", "--method", "writer_test", "TAQ", datasets=("mmlu_pro",))
    clean, later = ({r.name: r for r in load_results(tmp_path / side / "results")} for side in "ab")
    assert later["TAQ"].metrics == clean["TAQ"].metrics and later["TAQ"].stages == clean["TAQ"].stages
    assert not later["writer_test"].ok


def bad_quantizer(kind: str):
    def q(weight, layer):
        if kind == "in place":
            return weight.zero_()
        if kind == "shape":
            return weight.mean(1, keepdim=True)
        return None if kind == "none" else weight * float("nan")
    return q


@pytest.mark.parametrize("kind,said", [("in place", None), ("shape", "gave .* a tensor of shape"),
                                       ("none", "gave .* a NoneType"), ("nan", "gave .* weights that are not finite")])
def test_what_a_quantizer_gives_is_checked(kind, said, registries, tiny_folder, tmp_path):
    import re

    quantizer("bad_test")(bad_quantizer(kind))
    names = ("equal+top_fraction+bad_test", "TAQ")
    assert run(tiny_folder, tmp_path / "a", "--method", "TAQ", datasets=("mmlu_pro",)) == 0
    run(tiny_folder, tmp_path / "b", "--method", *names, datasets=("mmlu_pro",))
    clean, later = ({r.name: r for r in load_results(tmp_path / side / "results")} for side in "ab")
    assert later["TAQ"].metrics == clean["TAQ"].metrics
    bad = later["equal+top_fraction+bad_test"]
    assert bad.ok if said is None else re.search(said, bad.error), bad.error
