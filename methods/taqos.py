"""TAQoS: how far the next-token distribution moves when one block's output carries quantization noise.

    range_l = mean over prompts of (max − min) of h_l at the last token,   Δ_l = range_l / (2⁴ − 1)
    h'_l = h_l + η,  η ~ U(−Δ_l/2, Δ_l/2) on every element at every position
    score_l = mean over prompts of KL(softmax(z/T) ‖ softmax(z'/T)) at the last position, T = 1, in nats

Higher = protect.  Paper: arXiv 2511.06516 (TAQ-KL).  Native: best ceil(25 %) of the blocks at 8 bits, rest 4.
Deviation: the noise of a prompt comes from a generator seeded by (seed, document, block) alone, so that
batching does not change it.  Blocks before l are not run again: their output is the clean one.
"""

from __future__ import annotations

from core.digest import digest
from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.settings import Setting
from core.types import ScoreContext, Scores

activations, forward = Lazy("streams.activations"), Lazy("core.forward")
KL_DOCS = Setting("kl_docs", int, 64, "calibration documents that TAQoS reads", low=1, documents=True)
LEVELS = 2**4 - 1


def noise(shape: tuple[int, ...], seed: int, doc: str, block: int) -> torch.Tensor:
    """U(−½, ½) of ``shape``, float32, from a generator that only (seed, document, block) seed."""
    generator = torch.Generator().manual_seed(int(digest([seed, doc, block])[:15], 16))
    return torch.rand(shape, generator=generator) - 0.5


def steps(ctx: ScoreContext, chosen: list[int]) -> torch.Tensor:
    """Phase 1: Δ_l per block, float64 [blocks]."""
    total = torch.zeros(len(ctx.blocks), dtype=torch.float64)

    def see(block, h, mask, batch):
        last = h[:, -1].float()
        total[block] += (last.amax(-1) - last.amin(-1)).sum(dtype=torch.float64).cpu()

    activations.each_block_output(ctx, chosen, see, "activation ranges")
    return total / len(chosen) / LEVELS


def noisy(ctx: ScoreContext, h: torch.Tensor, batch: list[int], block: int, step: float) -> torch.Tensor:
    """h [B, T, d] plus Δ·U(−½, ½) at the real positions of each row (left-padded)."""
    added = torch.zeros_like(h, dtype=torch.float32)
    for row, doc in enumerate(batch):
        length = len(ctx.calib.tokens[doc])
        draw = noise((length, h.shape[2]), ctx.param("seed"), ctx.calib.doc_ids[doc], block)
        added[row, h.shape[1] - length:] = draw.to(h.device) * step
    return (h.float() + added).to(h.dtype)


def batch_kl(ctx: ScoreContext, batch: list[int], step: torch.Tensor) -> torch.Tensor:
    """Phase 2 on one batch: Σ over its prompts of the KL in nats, float64 [blocks]."""
    ids, mask = activations.padded(ctx, batch)
    clean_h: dict[int, torch.Tensor] = {}
    with forward.watch(ctx.blocks, clean_h.__setitem__) as widths:
        clean = forward.call(ctx.model, ids, mask).logits[:, -1].float().log_softmax(-1)
    out = torch.zeros(len(ctx.blocks), dtype=torch.float64)
    for block in range(len(ctx.blocks)):
        h = noisy(ctx, clean_h.pop(block), batch, block=block, step=float(step[block]))
        with forward.skip_to(ctx.blocks, block, h, widths[block]):
            moved = forward.call(ctx.model, ids, mask).logits[:, -1].float().log_softmax(-1)
        out[block] = (clean.exp() * (clean - moved)).sum(dtype=torch.float64).cpu()
    return out


@scorer("TAQoS", granularity="layer", params=(KL_DOCS, "batch_tokens", "seed", "published"), every_block=True,
        # the ranges, the clean run, and for every block a run that skips the blocks before it: half a pass
        forwards=lambda blocks: 2 + (blocks - 1) / 2)
def taqos(ctx: ScoreContext) -> Scores:
    """Mean KL in nats under a 4-bit step of uniform noise at one block."""
    with torch.inference_mode():
        kl, step = mean_kl(ctx)
    # the KL of two nearly equal float32 distributions can round to -1e-9: it is zero
    return Scores("layer", ctx.spread([max(0.0, k) for k in kl]), "nats", notes={"kl": kl, "step": step})


def mean_kl(ctx: ScoreContext) -> tuple[list[float], list[float]]:
    """Mean KL in nats and step Δ of each block; batch by batch, so that a kill costs one."""
    chosen = activations.prompts(ctx, "kl_docs")
    step = torch.tensor(ctx.once("step", lambda: steps(ctx, chosen).tolist()), dtype=torch.float64)
    total, todo = torch.zeros(len(ctx.blocks), dtype=torch.float64), activations.batches(ctx, chosen)
    for done, batch in enumerate(todo):
        ctx.progress("KL under noise", done, len(todo))
        total += torch.tensor(ctx.once(f"kl-{done}", lambda: batch_kl(ctx, batch, step).tolist()), dtype=torch.float64)
    return (total / len(chosen)).tolist(), step.tolist()


method("TAQoS", scorer="TAQoS", paper="arXiv:2511.06516")
method("TAQoS-native", scorer="TAQoS", allocator="top_fraction", quantizer="rtn-float", native=True,
       paper="arXiv:2511.06516")
