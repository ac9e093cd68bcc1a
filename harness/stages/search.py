"""The search of the menu's plans by measured KL divergence (quantization/allocators/menu.py).

A step at the plan so far, with D the calibration documents of solvers and gradients:

    B_lf = ⟨∂KL(model ‖ quantized)/∂Ŵ_l on D, Ŵ_lf − Ŵ_l⟩          the divergence's slope towards every form
    S_lf = ½ · mean over draws of (a_dlf − a_dl,chosen)², summed over D    how it bends, as priced at the full model
    for λ in BENDS: the knapsack buys by B + λ S; the plan with the least KL on J is taken, if that is less than before

J are as many tokens again of the task, documents that neither solvers nor gradients read.  KL is in nats a token.
"""

from collections.abc import Callable

import numpy as np
import torch

from core.errors import UserError
from core.offload import scratch_of
from core.types import CalibSet
from harness.stages.case import Case
from harness.stages.library import Library
from harness.store.partial import Partial
from streams.divergence import divergence, log_chances
from streams.gradients import each_gradient, ready, zeros_for

BENDS = (1.0, 2.0, 4.0, 8.0)  # a form's error is large: the slope alone would move every linear at once


def search(case: Case, offered: Library, along: np.ndarray, partial: Partial, choice: np.ndarray, *,
           buy: Callable[[np.ndarray], np.ndarray], steps: int) -> tuple[np.ndarray, dict]:
    """A choice of forms that measures no worse than ``choice``, and what was measured."""
    if not steps:
        return choice, {}
    work = Measured(case, offered)
    done = partial.load_json("search") or {"choice": choice.tolist(), "kl": [], "over": False}
    choice = np.array(done["choice"])
    if not done["kl"]:
        done["kl"] = [work.kl(choice)]
    while len(done["kl"]) <= steps and not done["over"]:
        case.progress.update("search by measured KL", len(done["kl"]) - 1, steps)
        better = work.step(choice, done["kl"][-1], along, buy)
        if better is None:
            done["over"] = True
        else:
            choice, kl = better
            done |= {"choice": choice.tolist(), "kl": [*done["kl"], kl]}
        partial.save_json("search", done)
    case.progress.update("search by measured KL", steps, steps)
    case.model.originals.restore()
    return choice, {"kl": done["kl"], "judged_on": len(work.judging)}


class Measured:
    """The model with one choice of forms in it, and the full model's log-probabilities."""

    def __init__(self, case: Case, offered: Library):
        self.offered, self.model = offered, case.model
        self.training, self.judging = list(case.solver_calib.tokens), list(unseen(case).tokens)
        self.model.originals.restore()
        self.held = np.full(len(offered.names), -1)
        with torch.no_grad():
            self.full = {id(ids): log_chances(self.model.module, ids).bfloat16()
                         for ids in (*self.training, *self.judging)}

    def put(self, choice: np.ndarray) -> None:
        """Make the model hold a choice."""
        for index in np.flatnonzero(self.held != choice):
            name = self.offered.names[index]
            self.model.originals.put(name, self.offered.stored(name, int(choice[index])).values)
        self.model.originals.holds = None
        self.held = choice.copy()

    def _divergence(self, ids: np.ndarray) -> torch.Tensor:
        return divergence(self.full[id(ids)], log_chances(self.model.module, ids))

    @torch.no_grad()
    def kl(self, choice: np.ndarray) -> float:
        """Mean KL on the documents that judge, nats a token."""
        self.put(choice)
        return sum(float(self._divergence(ids)) for ids in self.judging) / sum(map(len, self.judging))

    def slope(self, choice: np.ndarray) -> np.ndarray:
        """B, float64 [linears, forms]."""
        self.put(choice)
        model, names = self.model, self.offered.names
        tokens, weights = sum(map(len, self.training)), [self.model.linears[name].weight for name in names]
        sums = [own["sum"] for own in zeros_for(weights, ("sum",), scratch_of(model.module))]
        with (ready(model.module, weights, weights[0].dtype),
              each_gradient(weights, lambda index, grad: sums[index].add_(grad.to(sums[index].device)))):
            for ids in self.training:
                (self._divergence(ids) / tokens).backward()
        slopes = np.zeros((len(names), len(self.offered.forms)))
        for index, name in enumerate(names):
            moved = self.offered.moved(name, model.originals.weights[name])
            at = (moved @ sums[index].flatten().to("cpu", moved.dtype)).float().numpy()
            slopes[index] = at - at[choice[index]]
        return slopes

    def bend(self, choice: np.ndarray, along: np.ndarray) -> np.ndarray:
        """S, float64 [linears, forms]."""
        further = along - along[:, np.arange(along.shape[1]), choice][:, :, None]
        draws = len(along) // len(self.training)
        return 0.5 * np.square(further, dtype=np.float64).sum(0) / (draws * sum(map(len, self.training)))

    def step(self, choice: np.ndarray, least: float, along: np.ndarray,
             buy: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float] | None:
        """The best of the plans that the expansion at ``choice`` proposes, or None if none is better."""
        slope, bend, best = self.slope(choice), self.bend(choice, along), None
        for share in BENDS:
            proposed = buy(slope + share * bend)
            if (proposed == choice).all():
                continue
            measured = self.kl(proposed)
            if measured < least:
                best, least = (proposed, measured), measured
        return best


def unseen(case: Case, loss: str | None = None) -> CalibSet:
    """As many tokens again of what calibrates, without the documents that solvers and gradients read; ``loss``: which
    tokens are marked, in place of --loss_mask.
    """
    twice = case.calib_data.solver_calib(case.calib_choice, tokens=2 * case.value("calib_tokens"),
                                         window=case.value("calib_window"), loss=loss or case.value("loss_mask"),
                                         seed=case.cell.seed)
    seen = {(name, tuple(map(int, ids))) for name, ids in zip(case.solver_calib.doc_ids, case.solver_calib.tokens)}
    rest = [i for i, (name, ids) in enumerate(zip(twice.doc_ids, twice.tokens))
            if (name, tuple(map(int, ids))) not in seen]
    if not rest:
        raise UserError(f"the search judges plans on documents of {twice.task} that solvers do not read, but they read "
                        "all there are; raise --calib_size, lower --calib_tokens, or give steps=0")
    return CalibSet(twice.task, tuple(twice.doc_ids[i] for i in rest), tuple(twice.tokens[i] for i in rest),
                    tuple(twice.loss_mask[i] for i in rest), twice.seed, twice.template)
