"""The prices stage: what each form of each linear is predicted to cost the task, and the menu that an allocator reads.

    quadratic   ½ · Σ over documents and draws of a_dlf² / (draws · tokens)           streams/dots.py
    fisher      ½ · Σ F_l (W − Ŵ_f)² / tokens                                         F as in streams/gradients.py
    error       tr(ΔHΔᵀ) / tr(WHWᵀ)                                                   what the solver minimises

The first is nats a token; the second would be, if a document's loss were a sum and not a mean.
"""

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from core.model import DTYPES
from harness.stages.case import Case
from harness.stages.documents import tokens_digest
from harness.stages.gradients import gradients
from harness.stages.library import Library, library, library_key
from harness.stages.search import search, unseen
from harness.store.entry import Content, stage_key
from harness.store.partial import Partial
from quantization.allocators.menu import PRICE, STEPS, Menu
from streams.dots import gradient_dots

VERSION = 1
DRAWS = 2  # labels a document


def menu_key(case: Case) -> list:
    """What identifies the menu in a plan's key."""
    judges = [tokens_digest(unseen(case))] if STEPS.of(case.method.options) else []
    return [library_key(case)[0], *([dots_key(case)[0]] if reads_dots(case) else []), *judges]


def reads_dots(case: Case) -> bool:
    """Whether the row's prices or its search read gradients along the forms' errors."""
    return PRICE.of(case.method.options) == "quadratic" or STEPS.of(case.method.options) > 0


def dots_key(case: Case) -> tuple[str, dict]:
    """Digest of the gradients along every form's error."""
    return stage_key("dots", VERSION, library=library_key(case)[0], draws=DRAWS, seed=case.cell.seed,
                     dtype=case.value("grad_dtype"), machine=case.model.grad_machine)


def menu(case: Case, partial: Partial) -> Menu:
    """What the row's allocator may buy; ``partial`` is the plan's unfinished work."""
    offered = library(case)
    price = PRICE.of(case.method.options)
    along = dots(case, offered) if reads_dots(case) else None
    tokens = sum(len(ids) for ids in case.solver_calib.tokens)
    if price == "error":
        loss = offered.error
    elif price == "fisher":
        loss = fisher(case, offered)
    else:
        loss = quadratic(along, tokens)
    return Menu(offered.names, offered.cost, loss, layer=offered.layer,
                search=lambda choice, buy, steps: search(case, offered, along, partial, choice, buy=buy, steps=steps))


def quadratic(along: np.ndarray, tokens: int) -> np.ndarray:
    """Each linear's predicted KL alone, nats a token, float64 [linears, forms]."""
    return 0.5 * np.square(along, dtype=np.float64).sum(0) / (DRAWS * tokens)


def dots(case: Case, offered: Library) -> np.ndarray:
    """Gradients along every form's error, float32 [documents · draws, linears, forms]."""
    def compute(_partial: Partial) -> Content:
        model = case.model
        model.originals.restore()
        moved = {fqn: offered.moved(fqn, model.originals.weights[fqn]) for fqn in offered.names}
        with case.memory("forms are priced", devices=model.grad_devices), model.on(*model.grad_devices):
            along = gradient_dots(model.module, model.linears, case.solver_calib.tokens, moved, draws=DRAWS,
                                  seed=case.cell.seed,
                                  grad_dtype=str(DTYPES[case.value("grad_dtype")]).removeprefix("torch."),
                                  progress=case.progress.stage("prices of every form"))
        return Content(lambda folder: save_file({"dots": along}, folder / "dots.safetensors"), {"model": model.label})

    return load_file(case.store.make(*dots_key(case), compute) / "dots.safetensors")["dots"]


def fisher(case: Case, offered: Library) -> np.ndarray:
    """½ · Σ over documents of Σ g² (W − Ŵ)² / tokens, g of a document's mean loss: float64 [linears, forms]."""
    squares, tokens = gradients(case, "square"), sum(map(len, case.solver_calib.tokens))
    originals = case.model.originals.weights
    return np.array([[float((squares[fqn].flatten() * moved.float().square()).sum(dtype=torch.float64)) / (2 * tokens)
                      for moved in offered.moved(fqn, originals[fqn])] for fqn in offered.names])
