"""Tuning end to end of what is stored beside the codes: scales and kept weights move, their number of bits does not.

    minimise over δ, ε   Σ over tokens of KL(full model ‖ quantized) / tokens     on the documents that the solver read
    scale of a group     s · 2^δ, rounded as it is stored, fp16; logarithmic scales stay: their steps of 9 % are longer
                         than the way that tuning goes
    kept weight          v + σ ε, rounded as it is stored: 16 or 8 bits; σ = the spread of its linear's kept weights

Gradients pass the rounding as if it were not there.  Adam from δ = ε = 0, at a rate that falls to 0 along a cosine.
Codes, zero points and which weights are kept stay as the solver left them.

The second phase of EfficientQAT (arXiv 2407.11062) trains scales alone, on the loss of the text itself; the divergence
from the full model is what mlx-lm's DWQ takes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.errors import UserError
from core.lazy import Lazy, torch
from core.settings import Setting
from core.types import Stored
from quantization.solvers.kept import Float8, through

passes, gradients = Lazy("streams.divergence"), Lazy("streams.gradients")
TUNE = Setting("tune", int, 0, "rounds over the solver's documents in which scales and kept weights are tuned end to "
               "end; 0: none", low=0, flag=False)
RATE = 0.004  # of δ in octaves, and of ε, a step
STEP = 512  # tokens a step has at least
BETAS = (0.9, 0.95)


class Tunable:
    """One linear of which scales and kept weights can be moved; ``values`` float32 [out, in] is ŵ as it is stored."""

    def __init__(self, stored: Stored, kept_dtype: torch.dtype, device: torch.device):
        parts = {name: part.to(device) for name, part in stored.parts.items()}
        self.before, self.kept_dtype = stored, kept_dtype
        self.group_of = _groups(parts, stored.layer.group_size, device)
        if "table" in parts:
            self.steps = parts["table"].half()[parts["codes"].long()]  # fp16 numbers, as they are stored
        else:
            self.steps = (parts["codes"].float() - parts["zero"][:, self.group_of]).to(torch.int16)  # q − z
        self.scale, self.float8, self.keep = parts["scale"], None, None
        self.delta = self.epsilon = None
        if "exponent" not in parts:
            self.delta = torch.zeros_like(self.scale)
        if "kept" in parts:
            self.keep = torch.as_tensor(stored.layer.keep, device=device)
            if "kept_exponent" in parts:
                self.float8 = Float8(int(parts["kept_exponent"]))
            self.kept = parts["kept"].float() if self.float8 is None else self.float8.values(parts["kept"])
            self.spread = float(self.kept.std(unbiased=False)) or float(self.kept.abs().max())
            self.epsilon = torch.zeros_like(self.kept)

    @property
    def moves(self) -> list[torch.Tensor]:
        """What is tuned: δ, ε, or both."""
        return [move for move in (self.delta, self.epsilon) if move is not None]

    def scales(self) -> torch.Tensor:
        """Scales as they are stored now, float32 [out, G]."""
        if self.delta is None:
            return self.scale
        moved = self.scale * self.delta.exp2()
        return moved if self.before.layer.scale_bits == 32 else moved.half().float()

    def kept_now(self) -> torch.Tensor:
        """Kept weights as they are stored now, float32 [nnz]."""
        moved = self.kept + self.spread * self.epsilon
        return through(moved, self.kept_dtype) if self.float8 is None else self.float8.through(moved)

    def values(self) -> torch.Tensor:
        """ŵ, float32 [out, in]."""
        values = self.steps * self.scales()[:, self.group_of]
        if self.keep is not None:
            values[self.keep] = self.kept_now()
        return values

    def take(self, grad: torch.Tensor) -> None:
        """Add what a gradient of ŵ [out, in] says of δ and ε to theirs."""
        grad = grad.to(self.steps.device).float()
        if self.keep is not None:
            self.epsilon.grad.add_(grad[self.keep], alpha=self.spread)
            grad = grad.masked_fill(self.keep, 0.0)
        if self.delta is not None:
            by_scale = torch.zeros_like(self.scale).index_add_(1, self.group_of, grad * self.steps)
            self.delta.grad.addcmul_(by_scale, self.scales(), value=math.log(2))

    def stored(self) -> Stored:
        """The linear as it is stored now."""
        parts = self.before.parts | {"scale": self.scales()}
        if self.keep is not None:
            now = self.kept_now()
            parts["kept"] = now.to(self.kept_dtype) if self.float8 is None else self.float8.codes(now)
        return replace(self.before, values=self.values(), parts=parts)


def _groups(parts: dict[str, torch.Tensor], size: int, device: torch.device) -> torch.Tensor:
    """The group of every column, int64 [in]; where groups run over another order of columns, by that order."""
    groups = torch.arange(parts["codes"].shape[1], device=device) // size
    return groups if "order" not in parts else torch.empty_like(groups).scatter_(0, parts["order"], groups)


@dataclass
class Tuning:
    """A model on its way: its linears, the documents, and the full model's log-probabilities of them."""

    module: torch.nn.Module
    weights: dict[str, torch.nn.Parameter]
    tunables: dict[str, Tunable]
    documents: Sequence[np.ndarray]
    full: Sequence[torch.Tensor]  # [T, vocabulary] each
    rounds: int
    seed: int

    def __post_init__(self):
        if len({id(self.weights[name]) for name in self.tunables}) < len(self.tunables):
            raise UserError("linears of this model share a weight, and scales of shared weights cannot be tuned; use "
                            "tune=0")
        self.kl: list[float] = []  # of each round while it moves, nats a token
        if not any(one.moves for one in self.tunables.values()):
            raise UserError("there is nothing to tune: scales of 6 bits move by steps of 9 %, and no weight is kept; "
                            "use scales=fp16 or tune=0")
        self.moves = [move for one in self.tunables.values() for move in one.moves]
        self.adam = torch.optim.Adam(self.moves, lr=RATE, betas=BETAS, eps=1e-12)

    def run(self, keep: Callable[[bytes], None], earlier: bytes | None, progress) -> list[float]:
        """All rounds, going on after those of ``earlier``; ``keep`` is handed the state after each.  Returns the KL
        divergence of each round, nats a token.
        """
        self.resume(earlier)
        self.put()
        batches = [list(self.batches(number)) for number in range(self.rounds)]
        total, done = sum(map(len, batches)), sum(map(len, batches[:len(self.kl)]))
        for batch_of in batches[len(self.kl):]:
            lost = 0.0
            for batch in batch_of:
                progress("scales and kept weights are tuned", done, total)
                lost += self.step(batch, RATE * 0.5 * (1 + math.cos(math.pi * done / total)))
                done += 1
            self.kl.append(lost / sum(map(len, self.documents)))
            keep(self.state())
        progress("scales and kept weights are tuned", total, total)
        return self.kl

    def batches(self, number: int) -> Iterator[list[int]]:
        """The documents of every step of a round, in an order of its own."""
        batch: list[int] = []
        for doc in np.random.default_rng([self.seed, number]).permutation(len(self.documents)).tolist():
            batch.append(doc)
            if sum(len(self.documents[one]) for one in batch) >= STEP:
                yield batch
                batch = []
        if batch:
            yield batch

    def step(self, batch: list[int], rate: float) -> float:
        """One step of Adam; returns the KL divergence before it, summed over tokens."""
        for move in self.moves:
            move.grad = torch.zeros_like(move)
        names, lost = list(self.tunables), 0.0
        weights, tokens = [self.weights[name] for name in names], sum(len(self.documents[doc]) for doc in batch)
        with (gradients.ready(self.module, weights, weights[0].dtype),
              gradients.each_gradient(weights, lambda index, grad: self.tunables[names[index]].take(grad))):
            for doc in batch:
                now = passes.log_chances(self.module, self.documents[doc])
                loss = passes.divergence(self.full[doc].to(now.device), now)
                lost += float(loss.detach())
                (loss / tokens).backward()
        if not math.isfinite(lost) or not all(torch.isfinite(move.grad).all() for move in self.moves):
            raise UserError("the model that is tuned gives numbers that are not finite; use tune=0 or --dtype fp32")
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        self.put()
        return lost

    def put(self) -> None:
        """Make the model hold what is stored now."""
        for name, one in self.tunables.items():
            self.weights[name].data.copy_(one.values())

    def state(self) -> bytes:
        """All that a later process needs to go on."""
        held = io.BytesIO()
        torch.save({"kl": self.kl, "moves": [move.detach().cpu() for move in self.moves],
                    "adam": self.adam.state_dict()}, held)
        return held.getvalue()

    def resume(self, state: bytes | None) -> None:
        """Go on from a state."""
        if state is None:
            return
        held = torch.load(io.BytesIO(state), weights_only=True, map_location="cpu")
        self.kl = held["kl"]
        for move, earlier in zip(self.moves, held["moves"], strict=True):
            move.data.copy_(earlier)
        self.adam.load_state_dict(held["adam"])
