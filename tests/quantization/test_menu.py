"""The menu of forms, and the allocator that buys one for each linear."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import methods  # noqa: F401  (registers)
from core.errors import BudgetError
from core.registry import ALLOCATORS
from core.types import Budget
from quantization.allocators.common import AllocContext
from quantization.allocators.menu import Menu
from quantization.bits import layer_bits, make_plan
from quantization.menu import Form, base_form, forms, ranked_masks, whole_bits


@pytest.mark.parametrize("group", (32, 64, 96, 128, 40))
@pytest.mark.parametrize("bits", (2, 3, 4, 5, 6))
def test_every_form_stores_a_linear_of_the_models_widths(group, bits):
    menu = forms(group, bits)
    assert len(set(menu)) == len(menu) <= 20 and {bits, 8} <= {form.bits for form in menu}
    assert all(form.group == 0 or group % form.group == 0 for form in menu)
    cost = [layer_bits(form.layer(960, None), (96, 960)) / (96 * 960) for form in menu]
    assert min(cost) < bits + 0.02 and max(cost) > 8  # a scale of 6 bits and a zero point for a whole row
    base = menu[base_form(menu, bits)]
    assert base.bits == bits and 0 < base.group < group and base.share
    assert [whole_bits(b) for b in (1.9, 2.25, 3.0, 4.99, 9.0)] == [2, 2, 3, 4, 6]


def test_masks_are_nested_and_of_the_asked_size():
    score = torch.rand(24, 50, generator=torch.Generator().manual_seed(0))
    masks = ranked_masks(score, (0, 0.004, 0.02, 0.1))
    assert masks[0] is None and [int(masks[s].sum()) for s in (0.004, 0.02, 0.1)] == [5, 24, 120]
    assert not (masks[0.004] & ~masks[0.02]).any() and not (masks[0.02] & ~masks[0.1]).any()
    assert float(score[torch.tensor(masks[0.1])].min()) >= float(score[torch.tensor(~masks[0.1])].max())


def offered(seed: int, linears: int = 12):
    """Random losses that fall with the bits, of linears of three shapes."""
    rng, menu = np.random.default_rng(seed), (Form(2, 0), Form(2, 32), Form(3, 32), Form(4, 32), Form(8, 32))
    shapes = {f"l{i}": ((32, 64), (64, 64), (64, 96))[i % 3] for i in range(linears)}
    cost = np.array([[layer_bits(form.layer(s[1], None), s) for form in menu] for s in shapes.values()])
    loss = -np.sort(-rng.gamma(1.0, size=(linears, len(menu))), axis=1)
    return shapes, menu, cost, loss


def context(shapes, menu, cost, loss, avg_bits: float, search=None, **options) -> AllocContext:
    names = list(shapes)
    of = Menu(names, cost, loss, layer=lambda fqn, form: menu[form].layer(shapes[fqn][1], None),
              search=search or (lambda choice, buy, steps: (choice, {})))
    return AllocContext(shapes, dict.fromkeys(names, 0), budget=Budget(avg_bits, group_size=32, tolerance=0.2),
                        options=options, menu=lambda: of)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(2.5, 7.0))
def test_it_buys_within_the_budget_and_the_notes_say_what(seed, avg_bits):
    shapes, menu, cost, loss = offered(seed)
    layers, notes = ALLOCATORS.get("menu").fn(context(shapes, menu, cost, loss, avg_bits))
    plan = make_plan(layers, shapes, (0, 0), notes=notes)
    assert plan.avg_bits <= avg_bits and notes["optimality_gap"] < 0.05
    assert {f: menu[j].layer(shapes[f][1], None) for f, j in notes["forms"].items()} == layers
    more = ALLOCATORS.get("menu").fn(context(shapes, menu, cost, loss, avg_bits + 1))[1]

    def lost(told):
        return sum(loss[i, told["forms"][f]] for i, f in enumerate(shapes))
    assert lost(more) <= lost(notes)


def test_the_search_may_change_the_choice_within_the_budget():
    shapes, menu, cost, loss = offered(3)
    seen = {}

    def search(choice, buy, steps):
        seen.update(steps=steps, first=choice)
        other = buy(loss[::-1] - 5.0)  # slopes may be negative
        assert cost[np.arange(len(other)), other].sum() <= int(4.0 * sum(r * c for r, c in shapes.values()))
        return other, {"kl": [1.0, 0.5]}

    notes = ALLOCATORS.get("menu").fn(context(shapes, menu, cost, loss, 4.0, search, steps=3))[1]
    assert seen["steps"] == 3 and notes["kl"] == [1.0, 0.5]
    assert [notes["forms"][f] for f in shapes] != seen["first"].tolist()


def test_a_budget_below_the_menu_is_refused():
    shapes, menu, cost, loss = offered(1)
    with pytest.raises(BudgetError, match=r"at least 2.* raise --avg_bits"):
        ALLOCATORS.get("menu").fn(context(shapes, menu, cost, loss, 2.0))
