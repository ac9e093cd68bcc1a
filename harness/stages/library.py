"""The library stage: every linear solved once in every form of the menu (quantization/menu.py).

Linears are solved in running order by the common quantizer, each on the inputs that the linears before it give at the
base form, so that what is bought later was solved for inputs like those that it will see.  A plan can be put together
from the library without solving anything again, at any budget of the same whole bits.

Which weights a form keeps: those of the largest (w − q(w))² / [U_jj]² · Σ_j F_ij, F = Σ over documents of the squared
gradient: the error that the solver cannot pass on to later columns, in rows whose output the loss is sensitive to.
``mask`` puts SpQR's score (without F), F (w − q(w))², or TaCQ's score |w| · Σ|g| · |w − q(w)| in its place.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load, save

from core.digest import write_json
from core.registry import QUANTIZERS
from core.types import Aid, LayerPlan, Stored
from harness.stages.case import Case
from harness.stages.gradients import gradients, gradients_key
from harness.stages.options import quantizer_options
from harness.store.entry import Content, stage_key
from harness.store.partial import Partial
from quantization.allocators.menu import MASK, mask_gradient
from quantization.bits import layer_bits
from quantization.menu import Form, base_form, forms, ranked_masks, whole_bits
from quantization.packing.bytes import unpack_mask
from quantization.packing.forms import PACKED, packed, packed_alone, unpacked
from quantization.solvers.kept import sixteen_bit
from quantization.solvers.rtn import dequantized
from streams.blocks import BlockStream, walk
from streams.hessians import Factor, factorise, layer_error

VERSION = 3
HELD = 8 * 10**9  # bytes of what the forms of all linears move


def menu_of(case: Case) -> tuple[Form, ...]:
    """The forms of the row's budget."""
    return forms(case.group_size, whole_bits(case.budget.avg_bits))


def library_key(case: Case) -> tuple[str, dict]:
    """Digest of a library: any budget of the same whole bits reads the same one."""
    quantizer = case.grid.quantizer
    return stage_key("library", VERSION, model=case.model.ref.key, quantizer=QUANTIZERS.identity(quantizer),
                     options=quantizer_options(case, quantizer), menu=[vars(form) for form in menu_of(case)],
                     mask=MASK.of(case.method.options), calib=case.solver_calib_digest,
                     gradients=gradients_key(case, mask_gradient(case.method.options))[0],
                     machine=case.model.machine)


class Library:
    """A library in the store."""

    def __init__(self, entry: Path, shapes: dict[str, tuple[int, int]], dtype: torch.dtype):
        self.entry, self.shapes, self.kept_dtype = entry, shapes, sixteen_bit(dtype)
        head = json.loads((entry / "library.json").read_text())
        self.forms = [Form(**form) for form in head["forms"]]
        self.base, self._linears = head["base"], head["linears"]
        self.names = list(self._linears)
        self._moved: dict[str, torch.Tensor] = {}

    @cached_property
    def cost(self) -> np.ndarray:
        """Stored bits, int64 [linears, forms]."""
        return np.array([[one["bits"] for one in self._linears[fqn]["forms"]] for fqn in self.names], dtype=np.int64)

    @cached_property
    def error(self) -> np.ndarray:
        """tr(ΔHΔᵀ) / tr(WHWᵀ), float64 [linears, forms]; of a solver that damps, with its damping."""
        return np.array([[one["error"] for one in self._linears[fqn]["forms"]] for fqn in self.names])

    def stored(self, fqn: str, form: int) -> Stored:
        """A linear in a form: ŵ float32 [out, in] and its plan."""
        facts = self._linears[fqn]["forms"][form]
        arrays = self._arrays(fqn, form)
        layer = _layer(arrays, self.forms[form], facts, self.shapes[fqn])
        values = unpacked(arrays, layer, self.shapes[fqn], self.kept_dtype)
        parts = {f"{PACKED}{name}": torch.from_numpy(array) for name, array in arrays.items()}
        return Stored(values, layer, parts, {"error": facts["error"], "form": self.forms[form].words})

    def layer(self, fqn: str, form: int) -> LayerPlan:
        """The plan of a linear in a form; its weights are not decoded."""
        return _layer(self._arrays(fqn, form), self.forms[form], self._linears[fqn]["forms"][form], self.shapes[fqn])

    def _arrays(self, fqn: str, form: int) -> dict[str, np.ndarray]:
        return _read(self.entry / self._linears[fqn]["file"], _prefix(fqn, form))

    def moved(self, fqn: str, weight: torch.Tensor) -> torch.Tensor:
        """Ŵ − W of every form, bf16 [forms, out · in]; ``weight``: W as loaded.  What fits HELD stays in memory."""
        if fqn in self._moved:
            return self._moved[fqn]
        moved = torch.stack([(self.stored(fqn, form).values.to(weight.dtype).float() - weight.float()).flatten()
                             .bfloat16() for form in range(len(self.forms))])
        if sum(one.nbytes for one in self._moved.values()) + moved.nbytes <= HELD:
            self._moved[fqn] = moved
        return moved


def _prefix(fqn: str, form: int) -> str:
    """Before the names of the arrays of a linear in a form."""
    return f"{fqn}|{form}|"


def _layer(arrays: dict[str, np.ndarray], form: Form, facts: dict, shape: tuple[int, int]) -> LayerPlan:
    """The plan that a form's stored arrays say."""
    layer = replace(form.layer(shape[1], None), ordered=facts["ordered"])
    return replace(layer, keep=unpack_mask(arrays, shape)) if "kept" in arrays else layer


def _read(path: Path, prefix: str) -> dict[str, np.ndarray]:
    with safe_open(path, "np") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}


_last: list[Library] = []  # the one in use: what it holds in memory serves every budget


def library(case: Case) -> Library:
    """The row's library, from the store or solved."""
    entry = case.store.make(*library_key(case), lambda partial: _compute(case, partial))
    if not _last or _last[0].entry != entry:
        _last[:] = [Library(entry, case.model.shapes, getattr(torch, case.model.ref.dtype))]
    return _last[0]


def bought(case: Case, forms_of: dict[str, int]) -> Callable[[str], Stored]:
    """Each linear in the form that a plan's notes name."""
    offered = library(case)
    return lambda fqn: offered.stored(fqn, forms_of[fqn])


def _compute(case: Case, partial: Partial) -> Content:
    """Solve block by block; finished blocks outlive a kill."""
    model, summed = case.model, gradients(case, mask_gradient(case.method.options))
    model.originals.restore()
    work = _Work(case, summed, partial)
    try:
        with case.memory("the library of forms is solved"), torch.no_grad():
            walk(BlockStream(model.module, model.blocks, case.solver_calib.tokens), model.linears, model.block_of,
                 solve_one=work.solve, progress=case.progress.stage("forms of every linear"), resume=work.resume,
                 after=work.after)
    finally:
        model.originals.restore(set(model.linears))
    head = {"forms": [vars(form) for form in work.forms], "base": work.base, "linears": work.linears}

    def write(folder: Path) -> None:
        for name in sorted({facts["file"] for facts in work.linears.values()}):
            (folder / name).write_bytes(partial.load(name))
        write_json(folder / "library.json", head)

    return Content(write, {"model": model.label})


class _Work:
    """Linears on their way into a library."""

    def __init__(self, case: Case, summed: dict[str, torch.Tensor], partial: Partial):
        self.case, self.summed, self.partial = case, summed, partial
        self.forms = menu_of(case)
        self.base = base_form(self.forms, whole_bits(case.budget.avg_bits))
        self.mask, self.kept_dtype = MASK.of(case.method.options), sixteen_bit(getattr(torch, case.model.ref.dtype))
        self.linears: dict[str, dict] = {}
        self.arrays: dict[str, np.ndarray] = {}  # of the block in work

    def solve(self, fqn: str, aid: Aid) -> torch.Tensor:
        """Every form of a linear; returns ŵ of the base form."""
        weight = self.case.model.originals.weights[fqn].to(aid.hessian.device).float()
        name = self.case.grid.quantizer
        aid = replace(aid, options=quantizer_options(self.case, name), kept_dtype=self.kept_dtype)
        masks, told, chosen = self._masks(fqn, weight, aid), [], None
        whole = layer_error(weight, aid.hessian) or 1.0
        for number, form in enumerate(self.forms):
            layer = form.layer(weight.shape[1], masks[form.bits][form.share])
            layer, values, arrays, lost = _in_form(name, weight, layer, aid)
            told.append({"bits": layer_bits(layer, tuple(weight.shape)), "ordered": layer.ordered,
                         "error": lost / whole})
            self.arrays |= {_prefix(fqn, number) + part: array for part, array in arrays.items()}
            chosen = values if number == self.base else chosen
        self.linears[fqn] = {"file": _file(self.case.model.block_of[fqn]), "forms": told}
        return chosen.to(self.case.model.linears[fqn].weight.dtype)

    def _masks(self, fqn: str, weight: torch.Tensor, aid: Aid) -> dict[int, dict]:
        """What each form keeps, by its bits and share."""
        if "library" not in aid.shared:
            aid.shared["library"] = factorise(aid.hessian, what=fqn)
        factor, summed, found = aid.shared["library"], self.summed[fqn].to(weight.device), {}
        for bits in sorted({form.bits for form in self.forms}):
            shares = tuple(sorted({form.share for form in self.forms if form.bits == bits}))
            if shares == (0,):
                found[bits] = {0: None}
                continue
            error = weight - dequantized(weight, LayerPlan(bits, self.case.group_size))
            found[bits] = ranked_masks(self._score(weight, error, summed, factor), shares)
        return found

    def _score(self, weight: torch.Tensor, error: torch.Tensor, summed: torch.Tensor, factor: Factor) -> torch.Tensor:
        """What ranks the weights of a linear, float32 [out, in]; summed: F, or for TaCQ's score Σ|g|."""
        if self.mask == "tacq":
            return (weight * error * summed).abs()
        if self.mask == "fisher":
            return error.square() * summed
        unrepaired = torch.where(factor.dead, 0.0, error.square() / factor.diagonal.square())
        return unrepaired if self.mask == "spqr" else unrepaired * summed.sum(1, keepdim=True)

    def resume(self, block: int) -> bool:
        """Put a block that an earlier process solved into the model, at the base form."""
        name = _file(block)
        facts = self.partial.load_json(f"{name}.json")
        data = None if facts is None else self.partial.load(name)
        if data is None:
            return False
        self.linears |= facts
        arrays = load(data)
        for fqn, told in facts.items():
            prefix = _prefix(fqn, self.base)
            own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            shape = self.case.model.shapes[fqn]
            layer = _layer(own, self.forms[self.base], told["forms"][self.base], shape)
            values = unpacked(own, layer, shape, self.kept_dtype)
            self.case.model.linears[fqn].weight.data.copy_(values)
        return True

    def after(self, block: int) -> None:
        """Keep a block's forms."""
        name = _file(block)
        inside = {fqn: facts for fqn, facts in self.linears.items() if facts["file"] == name}
        self.partial.save(name, save(self.arrays))
        self.partial.save_json(f"{name}.json", inside)
        self.arrays = {}


def _file(block: int) -> str:
    return f"block-{block:05d}.safetensors"


def _in_form(quantizer: str, weight: torch.Tensor, layer: LayerPlan,
             aid: Aid) -> tuple[LayerPlan, torch.Tensor, dict[str, np.ndarray], float]:
    """What the common quantizer makes of a linear: its plan, ŵ, the arrays that are stored, and the layer's error."""
    spec = QUANTIZERS.get(quantizer)
    if spec.needs:
        stored = spec.fn(weight.clone(), layer, aid)
        return stored.layer, stored.values, packed(stored), stored.notes["loss"]
    values = spec.fn(weight.clone(), layer)
    return layer, values, packed_alone(weight.cpu(), layer, quantizer), layer_error(weight - values, aid.hessian)
