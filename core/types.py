"""The data that flows between stages.  All frozen; shapes and units stand in the field comments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from core.errors import UserError
from core.lazy import torch


@dataclass(frozen=True)
class ModelRef:
    """Which weights, by content."""

    name: str
    # commit of the hub, or sha256 over config and weight files of a local folder; never the folder's name
    revision: str
    dtype: str  # "bfloat16" | "float16" | "float32"
    transform: ClassVar[str] = ""  # as loaded

    @property
    def key(self) -> dict[str, str]:
        """What identifies the weights in a digest: content and dtype, never the name."""
        return {"revision": self.revision, "dtype": self.dtype}


@dataclass(frozen=True)
class TransformedRef(ModelRef):
    """The same weights after something was folded into them."""

    transform: str = ""  # digest of what

    @property
    def key(self) -> dict[str, str]:
        """What identifies the weights in a digest: those as loaded, and what was folded in."""
        return super().key | {"transform": self.transform}


@dataclass(frozen=True)
class CalibSet:
    """Unlabeled calibration prompts of one task."""

    task: str
    doc_ids: tuple[str, ...]
    tokens: tuple[np.ndarray, ...]  # int64 [T_i] each
    loss_mask: tuple[np.ndarray, ...]  # bool [T_i] each; True = the token counts in a loss
    seed: int
    template: str  # digest of the prompt template
    truncated: int = 0  # prompts cut to the maximum length
    mixed: bool = False  # the task's documents first, then windows of general text


@dataclass(frozen=True)
class Scores:
    """What a scorer saw.

    granularity: "layer" = one number a decoder block (stored at each of its linears), "linear",
    "channel", "line" (whole rows or columns), "group" or "element".  values[fqn] is float32 of shape [], [], [in],
    [out, 1] or [1, in], [out or 1, in/g], [out, in]; higher = protect.  With ``levels`` set, a trailing axis
    [len(levels)] holds the expected loss at each bit level; lower = better.
    Allocators that rank single weights are handed −∞ for those that are not stored (harness/stages/best_scores.py).
    unit "z" marks signed, standardised scores; allocators that need a positive weight take exp(z).
    """

    granularity: str
    values: Mapping[str, torch.Tensor]
    unit: str
    levels: tuple[int, ...] | None = None
    notes: dict[str, Any] = field(default_factory=dict)  # e.g. ties, per-block vectors; plain JSON


@dataclass(frozen=True)
class Budget:
    """How many bits may be stored, and in what grid."""

    avg_bits: float  # stored bits per weight over the quantized linears, metadata included
    levels: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 16)
    group_size: int = 128  # input columns that share a scale and a zero point
    scale_bits: int = 16
    zero_bits: int | None = None
    table: bool = False  # whether codes stand for the values of a table, one for each linear
    kept_bits: int = 16
    tolerance: float = 0.01  # bits per weight; a plan lies in (avg_bits - tolerance, avg_bits]


@dataclass(frozen=True)
class LayerPlan:
    """How one linear of shape [out, in] is stored."""

    bits: int  # 16 = left alone
    group_size: int
    scale_bits: int = 16
    zero_bits: int | None = None  # None = as many as ``bits`` (an integer zero point); 0 = none, ranges around zero
    group_bits: np.ndarray | None = None  # uint8 [ceil(in/g)]: bits of each column group, over ``bits``
    keep: np.ndarray | None = None  # bool [out, in]: weights kept at 16 bits
    form: str = "grid"  # how it is stored, one of quantization/bits.py FORMS; common rows have "grid", "log", "table"
    ordered: bool = False  # groups run over permuted columns, so the permutation is stored
    kept_bits: int = 16  # of a kept weight: 16, or 8 beside a coded index (quantization/bits.py)
    # heads of its block whose 16-bit weights each token reads beside the codes of the others; 0 = no choice at run time
    dynamic_heads: int = 0


@dataclass(frozen=True)
class Aid:
    """What a quantizer that reads data may look at for one linear."""

    fqn: str
    hessian: torch.Tensor | None = None  # float32 [in, in], undamped: (2 / sequences) · Σ over tokens x xᵀ
    # scratch common to the linears that read this very input, e.g. a Cholesky factor
    shared: dict = field(default_factory=dict)
    replay: Callable[[], Any] | None = None  # -> iterator over the linear's inputs, one sequence [T, in] at a time
    fisher: torch.Tensor | None = None  # float32 [out, in]: Σ over sequences of the squared gradient
    library: Callable[[str], Any] | None = None  # fqn -> Stored: the linear in the form that the plan bought
    options: dict = field(default_factory=dict)  # what the method fixes, and "published"
    kept_dtype: torch.dtype | None = None  # 16-bit dtype of kept weights: the model's own if it has one; None = bf16
    tokens: int | None = None  # how many entered the Hessian


@dataclass(frozen=True)
class Stored:
    """One linear after a quantizer that reads data."""

    values: torch.Tensor  # ŵ float32 [out, in]
    layer: LayerPlan  # what is really stored: outliers and group bits as they came out
    # unpacked: codes, scales, ...; enough to pack and to rebuild values
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)  # plain JSON: damping, relative layer error


@dataclass(frozen=True)
class Plan:
    """A bit assignment for every quantized linear, and what it costs."""

    layers: dict[str, LayerPlan]
    stored_bits: int  # over the quantized linears, metadata included
    avg_bits: float  # stored_bits / weights of the quantized linears
    model_avg_bits: float  # the same with embeddings, head and norms at their own dtype
    notes: dict[str, Any] = field(default_factory=dict)  # e.g. optimality gap


@dataclass
class ScoreContext:
    """All that a scorer may look at; it must leave the model as it found it."""

    model: torch.nn.Module
    tokenizer: Any
    linears: dict[str, torch.nn.Linear]  # every quantized linear, weights [out, in]
    blocks: list[torch.nn.Module]  # decoder blocks in order
    block_of: dict[str, int]  # fqn -> index of its block
    calib: CalibSet | None
    params: dict[str, Any]
    allowed: tuple[str, ...] = ()  # what the scorer declared
    # (model, documents) -> (0..1, gold nats a token)
    task_metric: Callable[[torch.nn.Module, int], tuple[float, float]] | None = None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    solver_calib: CalibSet | None = None  # needs "gradients" or "hessian": what solvers calibrate on
    answers: CalibSet | None = None  # needs "answers": documents, loss_mask True at the tokens of the answer
    # "abs" | "square" | "sum" -> Σ over sequences, float32 [out, in]
    gradients: Callable[[str], dict[str, torch.Tensor]] | None = None
    # needs "outputs": indices of prompts, from the first on -> streams.outputs.BlockOutputs
    outputs: Callable[[list[int]], Any] | None = None
    # needs "hessian" -> fqn -> pivots of its input's Hessian, float32 [in] (streams.hessians.pivots_of)
    pivots: Callable[[], dict[str, torch.Tensor]] | None = None
    # ŵ of every linear at the base level, in the model's dtype
    corrupted: Callable[[], dict[str, torch.Tensor]] | None = None
    base: Callable[[tuple[int, int]], LayerPlan] | None = None  # how a linear of that shape is stored at the base level
    # (name, compute) -> compute()'s plain data (JSON), computed once even if the process is killed in between; the
    # name is a file's
    once: Callable[[str, Callable[[], Any]], Any] = lambda name, compute: compute()

    def param(self, name: str) -> Any:
        """Return a config field; one that the scorer did not declare is an error (it would not be in its key)."""
        if name not in self.allowed:
            declared = ", ".join(self.allowed) or "nothing"
            raise ValueError(f"the scorer read {name!r}, which its @scorer(params=...) does not declare; it declares "
                             f"{declared}")
        return self.params[name]

    def spread(self, per_block) -> dict[str, torch.Tensor]:
        """Give each linear its block's number: float32 scalars by fqn."""
        if len(per_block) != len(self.blocks):
            raise UserError(f"{len(per_block)} block scores for {len(self.blocks)} blocks; return one a block")
        return {fqn: torch.tensor(float(per_block[b]), dtype=torch.float32) for fqn, b in self.block_of.items()}
