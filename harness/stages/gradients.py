"""The gradients stage: sums over the solvers' calibration set, one entry a kind, one backward pass for all kinds that the grid wants."""

import time

import torch
from safetensors.torch import save_file

from core.digest import digest
from core.errors import UserError
from core.model import DTYPES
from core.registry import QUANTIZERS, SCORERS, resolve_method
from harness.grid import Cell
from harness.progress import Progress
from harness.stages.case import solver_memory
from harness.stages.documents import CellData, solver_calib
from harness.stages.model import Session
from harness.stages.options import VERSIONS
from harness.store.partial import Partial
from harness.store.store import _tensors, stage_key
from streams.gradients import KINDS, Snapshots, gradient_sums

SNAPSHOT_S = 60.0  # at least this long between two snapshots of a backward pass
COST = 0.05  # of a pass's time that its snapshots may take
HEAD = "head"


def gradient_kinds(scorer: str | None, quantizer: str | None) -> set[str]:
    """Kinds of gradient sums that a scorer and a quantizer read; a common row's quantizer, not named yet, reads none."""
    kinds = set(SCORERS.get(scorer).gradients) if scorer else set()
    return kinds | ({"square"} if quantizer in QUANTIZERS and "fisher" in QUANTIZERS.get(quantizer).needs else set())


def wanted_kinds(names: tuple[str, ...]) -> set[str]:
    """Kinds of gradient sums that the grid's methods will ask for, so that one backward pass gives them all."""
    kinds: set[str] = set()
    for name in names:
        spec = resolve_method(name)
        kinds |= gradient_kinds(spec.scorer, spec.quantizer)
    return kinds


def gradients_key(session: Session, cell: Cell, data: CellData, kind: str) -> tuple[str, dict]:
    """Digest of one kind of gradient sum."""
    grid = session.grid
    calib, tokens = solver_calib(session, data, cell.seed)
    return stage_key("gradients", VERSIONS["gradients"], model=session.ref.key, kind=kind, calib=tokens, counted=digest(list(calib.loss_mask)),
                     dtype=grid.grad_dtype, machine=session.machine)


def gradients(session: Session, cell: Cell, data: CellData, kind: str, progress: Progress) -> dict[str, torch.Tensor]:
    """One kind of gradient sum of every linear, from the store or from one backward pass that fills every kind the grid needs."""
    key = gradients_key(session, cell, data, kind)[0]
    with session.store.lock(key, "gradients"):
        if session.store.get(key) is None:
            common = gradients_key(session, cell, data, KINDS[0])[0]  # a pass fills several kinds: one place for its snapshots, one process at it
            with session.store.lock(f"{common}-pass", "backward pass"):
                if session.store.get(key) is None:
                    _backward(session, cell, data, kind, progress, session.store.partial(common))
        return _tensors(session.store.path(key) / "gradients.safetensors")


def _backward(session: Session, cell: Cell, data: CellData, kind: str, progress: Progress, kept: Partial) -> None:
    if session.grid.eval_only:
        raise UserError(f"--eval_only: the gradients of this cell are not in {session.store.root}; run once without --eval_only")
    session.originals.restore()
    missing = {k for k in wanted_kinds(session.grid.methods) if session.store.get(gradients_key(session, cell, data, k)[0]) is None}
    wanted = tuple(sorted({kind} | missing))
    snapshots = GradientSnapshots(kept, SNAPSHOT_S)
    with solver_memory(session, "gradients are computed"):
        found = gradient_sums(session.model, session.linears, solver_calib(session, data, cell.seed)[0], wanted,
                              str(DTYPES[session.grid.grad_dtype]).removeprefix("torch."), progress.update, snapshots)
    seconds = snapshots.seconds
    for name in wanted:
        key, identity = gradients_key(session, cell, data, name)
        facts = {"model": session.label, "seconds": seconds, "losses": [float(x) for x in found.losses], "skipped": found.skipped}
        session.store.put(key, identity, facts, lambda folder, name=name: save_file(found.sums.pop(name), folder / "gradients.safetensors"))
    kept.clear()


class GradientSnapshots(Snapshots):
    """The sums after some documents, one file a linear in a folder named by the number of documents, and a head that names the folder.

    The head is written last and the older folder goes after it, so there is always one whole snapshot.  A folder's name
    and the digest of the pass say what is in a file, so files of two processes that died may even mix.
    """

    def __init__(self, kept: Partial, every: float):
        self.kept, self.every, self.before = kept, every, 0.0
        self.start = self.last = time.perf_counter()
        self.cost = 0.0  # seconds that the last snapshot took

    @property
    def seconds(self) -> float:
        """Spent on the sums so far, by this process and those before it."""
        return self.before + time.perf_counter() - self.start

    def resume(self, sums: dict[str, dict[str, torch.Tensor]]) -> tuple[int, list[float]]:
        """As in the head, if it has all the kinds that are wanted now."""
        head = self.kept.load_json(HEAD)
        if head is None or not all(own.keys() <= set(head["kinds"]) for own in sums.values()):
            return 0, []
        folder = self._folder(head["done"])
        for fqn, own in sums.items():
            found = folder.load_tensors(fqn)
            if found is None or not own.keys() <= found.keys():
                _clear(sums)
                return 0, []
            for kind, value in own.items():
                value.copy_(found[kind])
        self.before = head["seconds"]
        return head["done"], head["losses"]

    def after(self, done: int, losses: list[float], sums: dict[str, dict[str, torch.Tensor]]) -> None:
        """Snapshots are ``every`` seconds apart, or more where writing takes long: 16 GB of sums must not be written every minute."""
        began = time.perf_counter()
        if began - self.last < max(self.every, self.cost / COST):
            return
        folder, kinds = self._folder(done), sorted(next(iter(sums.values())))
        for fqn, own in sums.items():
            folder.save_tensors(fqn, own)
        self.kept.save_json(HEAD, {"done": done, "losses": losses, "kinds": kinds, "seconds": self.seconds})
        for other in self.kept.folder.iterdir():
            if other.is_dir() and other != folder.folder:
                Partial(other).clear()
        self.last = time.perf_counter()
        self.cost = self.last - began

    def _folder(self, done: int) -> Partial:
        return Partial(self.kept.folder / f"{done:06d}")


def _clear(sums: dict[str, dict[str, torch.Tensor]]) -> None:
    for own in sums.values():
        for value in own.values():
            value.zero_()
