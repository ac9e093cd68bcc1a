"""TALK through the harness: a library of solved forms, prices, the knapsack and the search."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import harness.stages.library as stage
import harness.stages.prices as pricing
from core.types import LayerPlan
from harness.cli.main import main
from harness.stages.gradients import gradients, own_kinds
from harness.stages.library import Library, library, library_key
from harness.stages.plan import plan
from harness.stages.prices import dots_key
from harness.stages.search import unseen
from quantization.bits import layer_bits
from quantization.solvers.rtn import dequantized
from report.records import load_results
from tests.harness.bench import case_of
from tests.harness.test_all_methods import flags

GRID = dict(run_type="demo", datasets=("mmlu_pro",), quantizer="gptq", calib_tokens=600, calib_size=60, eval_size=8,
            tolerance=0.1, avg_bits=(3.5,))


@pytest.fixture(scope="module")
def root(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    return dict(models=(str(tiny_folder),), cache_dir=str(folder / "cache"), results_dir=str(folder / "results"))


def case(root, name="TALK[steps=2]", **changes):
    return case_of(name, **(GRID | root | {"methods": (name,)} | changes))


@pytest.fixture(scope="module")
def offered(root) -> Library:
    return library(case(root))


def test_forms_are_counted_and_come_back_as_they_were_packed(root, offered):
    one = case(root)
    assert offered.cost.shape == offered.error.shape == (len(one.model.shapes), len(offered.forms))
    for fqn in offered.names[:8]:
        for form in (0, offered.base, len(offered.forms) - 1):
            stored = offered.stored(fqn, form)
            assert layer_bits(stored.layer, one.model.shapes[fqn]) == offered.cost[offered.names.index(fqn), form]
            assert torch.isfinite(stored.values).all()
    by_bits = {form.bits: offered.error[:, i].mean() for i, form in enumerate(offered.forms) if not form.share}
    assert by_bits[2] > by_bits[3] > by_bits[4] > by_bits[5] > by_bits[8]


def test_masks_by_tacq_are_its_score_of_each_linear(root):
    one = case(root, "TALK[mask=tacq]")
    offered, summed, group = library(one), gradients(one, "abs"), one.group_size
    form = next(i for i, form in enumerate(offered.forms) if form.share == 0.016)
    for fqn in offered.names[:4]:
        weight = one.model.originals.weights[fqn].float()
        error = weight - dequantized(weight, LayerPlan(offered.forms[form].bits, group))
        score, keep = (weight * error * summed[fqn]).abs(), torch.from_numpy(offered.stored(fqn, form).layer.keep)
        assert keep.sum() == round(0.016 * weight.numel())
        assert score[keep].min() >= score[~keep].max()
    assert "square" not in own_kinds(one) and own_kinds(case(root, "TALK[mask=tacq,price=fisher]")) == {"abs", "square"}


def test_at_the_base_form_the_library_is_a_plain_sequential_solve(root, offered):
    one = case(root)
    layers = {fqn: offered.stored(fqn, offered.base).layer for fqn in offered.names}
    model = one.model
    solved = {}
    model.originals.solve(layers, "gptq", model=model.module, blocks=model.blocks, block_of=model.block_of,
                          calib=one.solver_calib, see=lambda fqn, one: solved.__setitem__(fqn, one.values.clone()))
    model.originals.restore()
    for fqn in offered.names:
        assert torch.equal(solved[fqn], offered.stored(fqn, offered.base).values), fqn


def test_a_new_budget_solves_nothing_and_takes_no_new_gradient(root, offered, monkeypatch):
    first = plan(case(root, "TALK[steps=0]"))

    def forbidden(*_args, **_kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(stage, "_compute", forbidden)
    monkeypatch.setattr(pricing, "gradient_dots", forbidden)
    other = plan(case(root, "TALK[steps=0]", avg_bits=(3.9,)))
    assert first.plan.avg_bits <= 3.5 < 3.8 < other.plan.avg_bits <= 3.9
    assert library_key(case(root, avg_bits=(2.7,)))[0] != library_key(case(root))[0]  # other inputs: 2 bits before


def test_the_search_takes_only_what_measures_better(root, offered):
    notes = plan(case(root)).plan.notes
    kl = notes["kl"]
    assert 1 <= len(kl) <= 3 and all(b < a for a, b in pairwise(kl)) and notes["judged_on"] >= 1
    assert "kl" not in plan(case(root, "TALK[steps=0]")).plan.notes


def test_a_killed_library_and_search_go_on_where_they_stopped(root, offered, tmp_path, monkeypatch):
    here = root | {"cache_dir": str(tmp_path / "cache"), "results_dir": str(tmp_path / "results")}
    after, done = stage._Work.after, []

    def kill(self, block):
        after(self, block)
        done.append(block)
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(stage._Work, "after", kill)
    with pytest.raises(KeyboardInterrupt):
        library(case(here))
    monkeypatch.setattr(stage._Work, "after", lambda self, block: (done.append(block), after(self, block)))
    again = library(case(here))
    assert done == list(range(len(done)))  # no block was solved twice
    assert np.array_equal(again.cost, offered.cost) and np.array_equal(again.error, offered.error)
    for fqn in (offered.names[0], offered.names[-1]):
        assert torch.equal(again.stored(fqn, 3).values, offered.stored(fqn, 3).values)


def test_documents_that_judge_were_not_read_before(root):
    one = case(root)
    judges = set(unseen(one).doc_ids)
    assert judges and not judges & set(one.solver_calib.doc_ids)


def test_the_key_holds_what_is_read(root):
    base = library_key(case(root))[0], dots_key(case(root))[0]
    for changes, moves in (({"seeds": (5,)}, (True, True)), ({"calib_tokens": 500}, (True, True)),
                           ({"avg_bits": (3.9,)}, (False, False)), ({"eval_size": 9}, (False, False))):
        found = library_key(case(root, **changes))[0], dots_key(case(root, **changes))[0]
        assert tuple(a != b for a, b in zip(base, found)) == moves, changes
    assert library_key(case(root, "TALK[mask=spqr]"))[0] != base[0] == library_key(case(root, "TALK[price=error]"))[0]


@pytest.mark.parametrize("quantizer", ("gptq", "rtn"))
def test_the_rows_run(quantizer, root, tmp_path):
    where = root | {"results_dir": str(tmp_path / "results"), "quantizer": quantizer}
    names = ("TALK[steps=1]", "TALK[price=fisher,steps=0]", "TALK[price=error,steps=0]", "TALK[mask=tacq,price=error]")
    assert main(flags(**(GRID | where), methods=names)) == 0
    found = {r.name: r for r in load_results(tmp_path / "results")}
    assert all(3.4 < found[name].bits.average <= 3.5 for name in names)
    assert all("library" in found[name].seconds for name in names)
    assert [name for name in names if "prices" in found[name].seconds] == ["TALK[steps=1]"]
