"""TAQoS: how far the next-token distribution moves when one block's output carries quantization noise.

    range_l = mean over prompts of (max − min) of h_l at the last token,   Δ_l = range_l / (2⁴ − 1)
    h'_l = h_l + η,  η ~ U(−Δ_l/2, Δ_l/2) on every element at every position
    score_l = mean over prompts of KL(softmax(z/T) ‖ softmax(z'/T)) at the last position, T = 1, in nats

Higher = protect.  Paper: arXiv 2511.06516 (TAQ-KL).  Native: best ceil(25 %) of the blocks at 8 bits, rest 4.
Deviation: the noise of a prompt comes from a generator seeded by (seed, document, block) alone.

All disturbed copies of a prompt go through the model together, block by block: block l runs on the clean row and on one
row for every block before it, so a prompt takes one call a block and no padding.
"""

from __future__ import annotations

from core.digest import digest
from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.settings import Setting
from core.types import ScoreContext, Scores

activations, stacked = Lazy("streams.activations"), Lazy("streams.copies")
KL_DOCS = Setting("kl_docs", int, 64, "calibration documents that TAQoS reads", low=1, documents=True)
LEVELS = 2**4 - 1


def noise(shape: tuple[int, ...], seed: int, doc: str, block: int) -> torch.Tensor:
    """U(−½, ½) of ``shape``, float32, from a generator that only (seed, document, block) seed."""
    generator = torch.Generator().manual_seed(int(digest([seed, doc, block])[:15], 16))
    return torch.rand(shape, generator=generator) - 0.5


def prompt_kl(ctx: ScoreContext, doc: int, step: list[float]) -> list[float]:
    """Phase 2 on one prompt: the KL in nats under noise at each block, float64."""
    copies, hidden = stacked.Copies(ctx.model, ctx.blocks, ctx.calib.tokens[doc], ctx.param("batch_tokens")), None
    for block, size in enumerate(step):
        out, hidden = copies.block(block, hidden), None  # the clean row, then the row disturbed at each block before
        clean = out.narrow(copies.axis, 0, 1)
        draw = noise(tuple(clean.shape), ctx.param("seed"), ctx.calib.doc_ids[doc], block).to(clean.device)
        hidden = torch.cat([out, (clean.float() + draw * size).to(clean.dtype)], copies.axis)
    clean, moved = copies.logits(hidden).float().log_softmax(-1).split([1, len(step)])
    return (clean.exp() * (clean - moved)).sum(-1, dtype=torch.float64).tolist()


@scorer("TAQoS", granularity="layer", needs=("calib", "outputs"), every_block=True,
        params=(KL_DOCS, "batch_tokens", "seed", "published"),
        # the ranges, the clean row, and for every block a row through the blocks after it: half a pass
        forwards=lambda blocks: 2 + (blocks - 1) / 2)
def taqos(ctx: ScoreContext) -> Scores:
    """Mean KL in nats under a 4-bit step of uniform noise at one block."""
    with torch.inference_mode():
        kl, step = mean_kl(ctx)
    # the KL of two nearly equal float32 distributions can round to -1e-9: it is zero
    return Scores("layer", ctx.spread([max(0.0, k) for k in kl]), "nats", notes={"kl": kl, "step": step})


def mean_kl(ctx: ScoreContext) -> tuple[list[float], list[float]]:
    """Mean KL in nats and step Δ of each block; prompt by prompt, so that a kill costs one."""
    chosen = activations.prompts(ctx, "kl_docs")
    step = (ctx.outputs(chosen).range.mean(0) / LEVELS).tolist()  # phase 1
    total = torch.zeros(len(step), dtype=torch.float64)
    for done, doc in enumerate(chosen):
        ctx.progress("KL under noise", done, len(chosen))
        total += torch.tensor(ctx.once(f"kl-{done}", lambda: prompt_kl(ctx, doc, step)), dtype=torch.float64)
    return (total / len(chosen)).tolist(), step


method("TAQoS", scorer="TAQoS", paper="arXiv:2511.06516")
method("TAQoS-native", scorer="TAQoS", allocator="top_fraction", quantizer="rtn-float", native=True,
       paper="arXiv:2511.06516")
