"""TaCQ and the saliencies that its paper compares: one score a weight, higher = keep it at 16 bits.

    TaCQ            |W| · G · |W − Wq|     G = Σ_s |∂L_s/∂W| over calibration documents (streams/gradients.py)
    TaCQ-MSG        |W| · G
    TaCQ-QAL        G · |Wq − W|
    TaCQ-absgrad    G
    TaCQ-gradient   |Σ_s ∂L_s/∂W|
    TaCQ-fisher     Σ_s (∂L_s/∂W)²
    TaCQ-weight     |W|

All float32 [out, in].  W are the weights as loaded, Wq the model quantized at the base level without any kept weight.
Paper: arXiv 2504.07389, Eq. 5 and Table 5.  The sum over documents stands for the paper's mean: the order is the same.
Deviation: W and W − Wq are taken in float32.  The published script rounds W, Wq and their difference to fp16, which
moves about 1 kept weight in 370,000; ``published`` does so too.
"TaCQ-native"         N bits, one scale a row, 0.35 % of the weights kept
"TaCQ-budget-native"  the same with as many kept weights as the budget has room for
"""

from __future__ import annotations

from collections.abc import Iterator

from core.lazy import Lazy, torch
from core.registry import method, scorer
from core.settings import Setting
from core.types import ScoreContext, Scores

offload = Lazy("core.offload")
PAPER = "arXiv:2504.07389"
CORRUPT = Setting("corrupt", str, "gptq", "quantized model that TaCQ compares with", choices=("gptq", "rtn"))
# what the gradients depend on beside the documents, which needs=("gradients",) puts in the key
GRADIENT = ("grad_dtype",)
COMPARED = (*GRADIENT, "base", CORRUPT, "published")  # and the quantized model beside them


def _operands(weight: torch.Tensor, corrupt: torch.Tensor, published: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """W and W − Wq, in float32 or, as published, in fp16 (which a product with a float32 tensor widens again)."""
    dtype = torch.float16 if published else torch.float32
    weight, corrupt = weight.to(dtype), corrupt.to(dtype)
    return weight, weight - corrupt


def saliency(weight: torch.Tensor, gradient: torch.Tensor, corrupt: torch.Tensor,
             published: bool = False) -> torch.Tensor:
    """|G · (W − Wq) · W|, float32 [out, in]; ``gradient`` is G."""
    weight, moved = _operands(weight, corrupt, published)
    return (gradient * moved).mul_(weight).abs_()


def localization(weight: torch.Tensor, gradient: torch.Tensor, corrupt: torch.Tensor,
                 published: bool = False) -> torch.Tensor:
    """|G · (W − Wq)|, the paper's QAL, float32 [out, in]."""
    return (gradient * _operands(weight, corrupt, published)[1]).abs_()


def sharpened(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """|W| · G, the paper's MSG, float32 [out, in]."""
    return (gradient * weight.float()).abs_()


def _weights(ctx: ScoreContext) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights by name on the CPU, one after another, so that a GPU's are never all there."""
    return ((fqn, lin.weight.detach().cpu()) for fqn, lin in ctx.linears.items())


def _against_corrupt(ctx: ScoreContext, formula, unit: str) -> Scores:
    """A formula of W, G and Wq, linear by linear."""
    corrupt, published = ctx.corrupted(), ctx.param("published")
    gradient = ctx.gradients("abs")  # popped one by one: scores take their place, so there is never a second copy
    def score(fqn: str, weight: torch.Tensor) -> torch.Tensor:
        return offload.set_aside(ctx.model, formula(weight, gradient.pop(fqn), corrupt.pop(fqn), published))

    return Scores("element", {fqn: score(fqn, weight) for fqn, weight in _weights(ctx)}, unit)


@scorer("TaCQ", granularity="element", needs=("gradients",), params=COMPARED, gradients=("abs",))
def tacq(ctx: ScoreContext) -> Scores:
    """|W| · Σ|g| · |W − Wq|."""
    return _against_corrupt(ctx, saliency, "nats · weight")


@scorer("TaCQ-QAL", granularity="element", needs=("gradients",), params=COMPARED, gradients=("abs",))
def quantization_aware(ctx: ScoreContext) -> Scores:
    """Σ|g| · |Wq − W|: how much the loss moves, to first order."""
    return _against_corrupt(ctx, localization, "nats")


@scorer("TaCQ-MSG", granularity="element", needs=("gradients",), params=GRADIENT, gradients=("abs",))
def magnitude_sharpened(ctx: ScoreContext) -> Scores:
    """|W| · Σ|g|."""
    gradient = ctx.gradients("abs")
    return Scores("element", {fqn: offload.set_aside(ctx.model, sharpened(w, gradient.pop(fqn)))
                              for fqn, w in _weights(ctx)}, "nats")


@scorer("TaCQ-absgrad", granularity="element", needs=("gradients",), params=GRADIENT, gradients=("abs",))
def absolute_gradient(ctx: ScoreContext) -> Scores:
    """Σ|g|."""
    return Scores("element", dict(ctx.gradients("abs")), "nats / weight")


@scorer("TaCQ-gradient", granularity="element", needs=("gradients",), params=GRADIENT, gradients=("sum",))
def plain_gradient(ctx: ScoreContext) -> Scores:
    """|Σ g|: documents that pull in opposite directions cancel."""
    return Scores("element", {fqn: offload.set_aside(ctx.model, g.abs()) for fqn, g in ctx.gradients("sum").items()},
                  "nats / weight")


@scorer("TaCQ-fisher", granularity="element", needs=("gradients",), params=GRADIENT, gradients=("square",))
def fisher(ctx: ScoreContext) -> Scores:
    """Σ g²: the diagonal of the empirical Fisher matrix, times the number of documents."""
    return Scores("element", dict(ctx.gradients("square")), "nats² / weight²")


@scorer("TaCQ-weight", granularity="element", needs=())
def weight_magnitude(ctx: ScoreContext) -> Scores:
    """|W|; the control ``magnitude`` under the paper's name."""
    return Scores("element", {fqn: offload.set_aside(ctx.model, w.float().abs()) for fqn, w in _weights(ctx)}, "weight")


for _name in ("TaCQ", "TaCQ-weight", "TaCQ-fisher", "TaCQ-gradient", "TaCQ-absgrad", "TaCQ-MSG", "TaCQ-QAL"):
    method(_name, scorer=_name, paper=PAPER)
method("TaCQ-native", scorer="TaCQ", allocator="global_topk", quantizer="gptq", native=True, paper=PAPER, bits="N",
       ratio="ratio", search="published")
method("TaCQ-budget-native", scorer="TaCQ", allocator="global_topk", quantizer="gptq", native=True, paper=PAPER,
       bits="N", search="published", target="budget")
