"""The pivots stage: what scorers read of the Hessians of linears' inputs, from one walk over the model as loaded."""

import torch
from safetensors.torch import save_file

from core.types import ScoreContext
from harness.stages.case import Case
from harness.stages.options import VERSIONS
from harness.store.entry import Content, stage_key
from harness.store.tensors import load_tensors
from streams.hessians import pivots_of


def pivots_key(case: Case) -> tuple[str, dict]:
    """Digest of the pivots of the row's calibration set."""
    return stage_key("pivots", VERSIONS["pivots"], model=case.model.ref.key, calib=case.solver_calib_digest,
                     machine=case.model.machine)


def pivots(case: Case, ctx: ScoreContext) -> dict[str, torch.Tensor]:
    """From the store, or by walking over the model of ``ctx``; as :func:`streams.hessians.pivots_of` gives them."""
    def compute(_partial) -> Content:
        values = {fqn: value.cpu().contiguous() for fqn, value in pivots_of(ctx).items()}
        return Content(lambda folder: save_file(values, folder / "pivots.safetensors"),
                       {"model": case.model.label, "dataset": case.cell.dataset})

    return load_tensors(case.store.make(*pivots_key(case), compute) / "pivots.safetensors")
