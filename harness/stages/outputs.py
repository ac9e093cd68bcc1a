"""The outputs stage: statistics of block outputs over a data set's prompts, made once for all block scorers."""

from dataclasses import asdict, replace

from safetensors.torch import save_file

from core.registry import SCORERS
from core.types import ScoreContext
from harness.stages.case import Case
from harness.stages.options import VERSIONS
from harness.store.entry import Content, stage_key
from harness.store.tensors import load_tensors
from streams.outputs import PARAMS, BlockOutputs, block_outputs


def outputs_key(case: Case, documents: int | None) -> tuple[str, dict]:
    """Digest of the statistics of the first so many prompts; None: of all."""
    documents = len(case.prompts.tokens[:documents])
    return stage_key("outputs", VERSIONS["outputs"], model=case.model.ref.key, calib=case.prompts_digest,
                     machine=case.model.machine, documents=documents, params=_params(case))


def outputs(case: Case, ctx: ScoreContext, chosen: list[int]) -> BlockOutputs:
    """From the store, or by running the model of ``ctx`` over these prompts, which must be the first of them all.

    ``entropy`` depends on the row's seed; a scorer that reads it declares "seed".
    """
    if list(chosen) != list(range(len(chosen))):
        raise ValueError("ctx.outputs gives statistics of the first so many prompts; pass indices 0, 1, 2, ...")

    def compute(_partial) -> Content:
        whole = block_outputs(replace(ctx, params=ctx.params | _params(case), allowed=PARAMS), chosen)
        return Content(lambda folder: save_file(asdict(whole), folder / "outputs.safetensors"),
                       {"model": case.model.label, "dataset": case.cell.dataset})

    entry = case.store.make(*outputs_key(case, len(chosen)), compute)
    return BlockOutputs(**load_tensors(entry / "outputs.safetensors"))


def _params(case: Case) -> dict:
    """What the pass reads; a row whose scorer knows no seed reads nothing that depends on one, so it takes the first
    row's.
    """
    seeded = "seed" in SCORERS.get(case.method.scorer).params
    return {"batch_tokens": case.grid.batch_tokens, "seed": case.cell.seed if seeded else case.grid.seeds[0],
            "published": case.value("published")}
