"""The gradients stage: sums over the solvers' calibration set, one entry a kind, one backward pass for all kinds that
the grid wants.

Sums so far outlive a kill: snapshots of them lie in the store's folder of the unfinished pass.
"""

import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from core.calibration import READ_BY
from core.digest import digest
from core.method_names import resolve_method
from core.model import DTYPES
from core.registry import ALLOCATORS, QUANTIZERS, SCORERS
from harness.stages.case import Case
from harness.stages.options import VERSIONS
from harness.store.entry import Content, stage_key
from harness.store.partial import Partial
from harness.store.tensors import load_tensors
from quantization.allocators.menu import PRICE, mask_gradient
from streams.gradients import KINDS, GradientSums, Snapshots, gradient_sums

SNAPSHOT_S = 60.0  # at least this long between two snapshots of a backward pass
COST = 0.05  # of a pass's time that its snapshots may take
HEAD = "head"


def gradient_kinds(scorer: str | None, quantizer: str | None, allocator: str | None, options: dict) -> set[str]:
    """Kinds of gradient sums that a row reads; a common row's quantizer, not named yet, reads none."""
    kinds = set(SCORERS.get(scorer).gradients) if scorer else set()
    if quantizer in QUANTIZERS and "fisher" in QUANTIZERS.get(quantizer).needs:
        kinds.add("square")
    if allocator and "library" in ALLOCATORS.get(allocator).needs:
        kinds |= {mask_gradient(options)} | ({"square"} if PRICE.of(options) == "fisher" else set())
    return kinds


def own_kinds(case: Case) -> set[str]:
    """Kinds that this row reads."""
    method = case.method
    return gradient_kinds(method.scorer, method.quantizer, method.allocator, method.options)


def wanted_kinds(case: Case) -> set[str]:
    """Kinds that the grid's methods will ask of this row's documents, so that one backward pass gives them all."""
    names = [setting.name for setting in READ_BY["gradients"]]
    specs = [spec for spec in map(resolve_method, case.grid.methods)
             if all(spec.settings.get(name, case.grid.value(name)) == case.value(name) for name in names)]
    return {kind for spec in specs
            for kind in gradient_kinds(spec.scorer, spec.quantizer, spec.allocator, spec.options)}


def missing_kinds(case: Case, needed: set[str]) -> set[str]:
    """Kinds that a pass must make before ``needed`` are there: none, or all that the grid wants and lacks."""
    missing = {kind for kind in needed | wanted_kinds(case) if not case.store.has(gradients_key(case, kind)[0])}
    return missing if needed & missing else set()


def gradients_key(case: Case, kind: str) -> tuple[str, dict]:
    """Digest of one kind of gradient sum."""
    counted = case.once("counted", lambda: digest(list(case.solver_calib.loss_mask)))
    return stage_key("gradients", VERSIONS["gradients"], model=case.model.ref.key, kind=kind,
                     calib=case.solver_calib_digest,
                     counted=counted, dtype=case.value("grad_dtype"), machine=case.model.grad_machine)


def gradients(case: Case, kind: str) -> dict[str, torch.Tensor]:
    """A kind of gradient sum of every linear, float32 [out, in]; one pass makes every kind that the grid needs."""
    def compute(_partial: Partial) -> Content | None:
        # it fills several kinds: one place for its snapshots, one process at it
        one_pass = f"{gradients_key(case, KINDS[0])[0]}-pass"
        with case.store.lock(one_pass, "backward pass"):
            if case.store.get(gradients_key(case, kind)[0]) is None:
                _store_pass(case, kind, case.store.partial(one_pass))
        return None

    return load_tensors(case.store.make(*gradients_key(case, kind), compute) / "gradients.safetensors")


def _store_pass(case: Case, kind: str, unfinished: Partial) -> None:
    """Run one pass and store each kind that it gives; all of them carry the pass's seconds."""
    wanted = tuple(sorted({kind} | missing_kinds(case, {kind})))
    snapshots = GradientSnapshots(unfinished, SNAPSHOT_S)
    with case.store.clock() as clock:
        sums = _backward(case, wanted, snapshots)
    facts = {"model": case.model.label, "seconds": clock.seconds + unfinished.spent,
             "losses": [float(x) for x in sums.losses], "skipped": sums.skipped}
    for name in wanted:
        key, identity = gradients_key(case, name)
        case.store.put(key, identity, facts, partial(_write, sums.sums.pop(name)))
    unfinished.clear()


def _write(sums: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(sums, folder / "gradients.safetensors")


def _backward(case: Case, kinds: tuple[str, ...], snapshots: "GradientSnapshots") -> GradientSums:
    model = case.model
    model.originals.restore()
    dtype = str(DTYPES[case.value("grad_dtype")]).removeprefix("torch.")
    with case.memory("gradients are computed", devices=model.grad_devices), model.on(*model.grad_devices):
        return gradient_sums(model.module, model.linears, case.solver_calib, kinds, grad_dtype=dtype,
                             progress=case.progress.update, snapshots=snapshots)


class GradientSnapshots(Snapshots):
    """The sums after some documents, one file a linear in a folder named by the number of documents, and a head that
    names the folder.

    The head is written last and the older folder goes after it, so there is always one whole snapshot.  A folder's name
    and the digest of the pass say what is in a file, so files of two processes that died may even mix.
    """

    def __init__(self, partial: Partial, every: float):
        self.partial, self.every = partial, every
        self.start = self.last = time.perf_counter()
        self.cost = 0.0  # seconds that the last snapshot took

    def resume(self, sums: dict[str, dict[str, torch.Tensor]]) -> tuple[int, list[float]]:
        """As in the head, if it has all the kinds that are wanted now."""
        head = self.partial.load_json(HEAD)
        self.partial.spent = 0.0  # the head says what the sums cost in all
        if head is None or not all(own.keys() <= set(head["kinds"]) for own in sums.values()):
            return 0, []
        folder = self._folder(head["done"])
        for fqn, own in sums.items():
            stored = folder.load_tensors(fqn)
            if stored is None or not own.keys() <= stored.keys():
                _clear(sums)
                return 0, []
            for kind, value in own.items():
                value.copy_(stored[kind])
        self.partial.spent = head["seconds"]
        return head["done"], head["losses"]

    def after(self, done: int, losses: list[float], sums: dict[str, dict[str, torch.Tensor]]) -> None:
        """Snapshots are ``every`` seconds apart, or more where writing takes long (16 GB of sums)."""
        began = time.perf_counter()
        if began - self.last < max(self.every, self.cost / COST):
            return
        folder, kinds = self._folder(done), sorted(next(iter(sums.values())))
        for fqn, own in sums.items():
            folder.save_tensors(fqn, own)
        seconds = self.partial.spent + time.perf_counter() - self.start
        self.partial.save_json(HEAD, {"done": done, "losses": losses, "kinds": kinds, "seconds": seconds})
        for other in self.partial.folder.iterdir():
            if other.is_dir() and other != folder.folder:
                Partial(other).clear()
        self.last = time.perf_counter()
        self.cost = self.last - began

    def _folder(self, done: int) -> Partial:
        return Partial(self.partial.folder / f"{done:06d}")


def _clear(sums: dict[str, dict[str, torch.Tensor]]) -> None:
    for own in sums.values():
        for value in own.values():
            value.zero_()
