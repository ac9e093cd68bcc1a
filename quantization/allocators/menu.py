"""One price for every bit: each linear buys one form of a menu (quantization/menu.py), kept weights included.

    minimise  Σ over linears of the predicted loss of its form    under the stored-bit budget

A multiple-choice knapsack as for levels; then a short search that measures: at the plan so far the loss is expanded
again, the knapsack solved with it, and the new plan taken only if the measured loss on documents that the expansion
did not see falls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from core.errors import BudgetError
from core.registry import allocator
from core.settings import Setting
from core.types import LayerPlan
from quantization.allocators.common import AllocContext
from quantization.allocators.knapsack import lagrangian, solve
from quantization.bits import weights_of

MASK = Setting("mask", str, "unrepaired", "which weights a form keeps: by the error that the solver cannot repair, in "
               "rows that the loss feels (unrepaired), in all alike (spqr), by squared gradient and error (fisher), or "
               "by weight, gradient and error (tacq)", choices=("unrepaired", "spqr", "fisher", "tacq"), flag=False)
PRICE = Setting("price", str, "quadratic", "predicted loss of a form: gradients along its error (quadratic), squared "
                "gradients times squared errors (fisher), or the layer's own error (error)",
                choices=("quadratic", "fisher", "error"), flag=False)
STEPS = Setting("steps", int, 0, "steps of the search by measured loss; 0: what the prices say", low=0, flag=False)


def mask_gradient(options: dict) -> str:
    """The kind of gradient sums that a row's masks read."""
    return "abs" if MASK.of(options) == "tacq" else "square"


@dataclass(frozen=True)
class Menu:
    """What the allocator may buy; the harness makes it (harness/stages/prices.py)."""

    names: list[str]
    cost: np.ndarray  # stored bits, int64 [linears, forms]
    loss: np.ndarray  # predicted, float64 [linears, forms]
    layer: Callable[[str, int], LayerPlan]
    # (choice [linears], buy: losses -> choice, steps) -> (a choice that measured no worse, what to tell)
    search: Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray], int], tuple[np.ndarray, dict]]


@allocator("menu", options=(MASK, PRICE, STEPS), needs=("library",), keeps=True)
def menu(ctx: AllocContext):
    """The forms of least predicted loss, then of least measured loss."""
    offered = ctx.menu()
    weights = weights_of(ctx.shapes)
    least = int(offered.cost.min(1).sum())
    if least > ctx.total_bits:
        raise BudgetError(f"{ctx.budget.avg_bits} bits a weight cannot be met by the menu, which stores at least "
                          f"{least / weights:.4f}; raise --avg_bits")
    choice, gap = solve(offered.loss, offered.cost, ctx.total_bits, slack=int(ctx.budget.tolerance * weights))

    def buy(loss: np.ndarray) -> np.ndarray:
        return lagrangian(loss - loss.min(), offered.cost, ctx.total_bits)[0]

    choice, told = offered.search(choice, buy, STEPS.of(ctx.options))
    layers = {name: offered.layer(name, int(form)) for name, form in zip(offered.names, choice, strict=True)}
    bought = {name: int(form) for name, form in zip(offered.names, choice, strict=True)}
    return layers, {"optimality_gap": gap, "forms": bought} | told
