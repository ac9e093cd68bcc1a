"""A row against its own shuffles: no rows of their own, a line that counts."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.shuffle import SHUFFLE
from harness.cli.main import main
from report.records import load_results
from report.tables.shuffles import against_shuffles, is_shuffle, shuffle_lines
from report.tables.tables import tables
from report.text.render import text
from tests.harness.test_all_methods import flags


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shuffles")
    where = dict(models=(str(tiny_folder),), cache_dir=str(root / "cache"), results_dir=str(root / "results"))
    args = flags(**where, methods=("TaCQ", "TAQ", "SliM-LLM", "equal", "SPQR"), avg_bits=(3.5,), quantizer="rtn",
                 tolerance=0.1)
    assert main([*args, "--shuffles", "3"]) == 0
    return root / "results"


def test_every_scored_row_and_uniform_have_as_many_shuffles_as_asked(done):
    results = load_results(done)
    counts = {}
    for result in filter(is_shuffle, results):
        counts.setdefault(result.name.partition("[")[0], set()).add(result.method.settings["shuffle"])
        assert abs(result.bits.average - 3.5) < 0.1
    assert counts == {name: {1, 2, 3} for name in ("uniform", "TaCQ", "TAQ", "SliM-LLM", "SPQR")}
    plans = {r.name: r.stages["plan"] for r in results}
    assert len({plans[f"TAQ[shuffle={k}]"] for k in (1, 2, 3)} | {plans["TAQ"]}) >= 3
    assert plans["TaCQ[shuffle=1]"] == plans["SPQR[shuffle=1]"]  # random weights are random weights: solved once
    assert plans["uniform[shuffle=1]"] != plans["uniform"]


def test_tables_fold_them_into_a_line_that_counts(done):
    table = tables(done)[0]
    assert not [row for row in table.rows if "shuffle" in row["method"]]
    facts = {row["method"]: row for row in table.facts["mmlu_pro"]["shuffles"]}
    assert set(facts) == {"uniform", "TaCQ", "TAQ", "SliM-LLM", "SPQR"}
    results = {r.name: r.metrics["gold_loglik"].value for r in load_results(done)}
    for name, fact in facts.items():
        draws = [results[f"{name}[shuffle={k}]"] for k in (1, 2, 3)]
        assert fact["beaten"] == sum(d < results[name] for d in draws) + 0.5 * draws.count(results[name])
        assert fact["mean"] == pytest.approx(sum(draws) / 3) and fact["draws"] == 3
    shown = text([table], "markdown", details=False)
    assert "3 shuffles of its own scores" in shown and "3 fill orders" in shown and "shuffle=" not in shown


def test_ties_count_as_half_and_seeds_stay_apart(done):
    results = load_results(done)
    own = next(r for r in results if r.name == "TaCQ")
    draw = next(r for r in results if r.name == "TaCQ[shuffle=1]")
    same = replace(draw, metrics=draw.metrics | {"gold_loglik": own.metrics["gold_loglik"]})
    other_seed = replace(draw, seed=own.seed + 1)
    [fact] = against_shuffles([own], [same, other_seed])
    assert (fact["beaten"], fact["draws"], fact["sd"]) == (0.5, 1, None)
    assert "is ahead of 0.5 of 1 shuffles" in shuffle_lines("x", [fact])[0]
    assert SHUFFLE.name in same.method.settings


def test_a_shuffle_keeps_the_values_and_moves_whole_blocks():
    import torch

    from core.types import Scores
    from quantization.allocators.ranking import shuffled

    block_of = {f"b{b}.{n}": b for b in range(6) for n in "qk"}
    by_block = Scores("layer", {f: torch.tensor(float(b)) for f, b in block_of.items()}, "z")
    moved = shuffled(by_block, block_of, 1)
    assert [float(moved.values[f"b{b}.q"]) for b in range(6)] == [float(moved.values[f"b{b}.k"]) for b in range(6)]
    assert sorted(float(moved.values[f"b{b}.q"]) for b in range(6)) == [0, 1, 2, 3, 4, 5]
    assert any(float(moved.values[f"b{b}.q"]) != b for b in range(6))
    for granularity, shape in (("channel", (7,)), ("group", (1, 5)), ("group", (4, 5)), ("line", (6, 1)),
                               ("line", (1, 6))):
        value = torch.rand(shape)
        [got] = shuffled(Scores(granularity, {"a": value}, "nats"), {"a": 0}, 3).values.values()
        assert got.shape == value.shape and torch.equal(got.flatten().sort()[0], value.flatten().sort()[0])
        assert not torch.equal(got, value)
    levels = Scores("linear", {f"l{i}": torch.tensor([float(i), 0.0]) for i in range(8)}, "nats", levels=(2, 16))
    again = shuffled(levels, {f"l{i}": 0 for i in range(8)}, 2).values
    assert sorted(float(v[0]) for v in again.values()) == list(range(8))
    assert all(float(v[1]) == 0 for v in again.values())
