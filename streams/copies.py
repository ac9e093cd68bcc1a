"""Copies of one prompt, each with hidden states of its own, run together one block at a time.

The model's own code calls the block, so positions and masks are as the family makes them: the blocks before hand over
the given hidden states, and what follows the block is not run.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn

from core.errors import UserError
from core.forward import call, device_of, skip_to, watch


class _Seen(Exception):
    """The block has run; the rest of the model need not."""


class Copies:
    """Copies of the prompt ``tokens`` [T], unpadded; at most ``max_tokens`` tokens (or one copy) run together."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], tokens, max_tokens: int):
        self.model, self.blocks = model, blocks
        self.ids = torch.as_tensor(tokens, device=device_of(model)).long()[None]
        self.together = max(1, max_tokens // self.ids.shape[1])
        self.axis = 0  # of the copies in hidden states; a family with several residual streams may put these first
        self.width = 0  # of the tuple that a block returns; 0 = a tensor

    def block(self, at: int, hidden: torch.Tensor | None) -> torch.Tensor:
        """What block ``at`` makes of ``hidden``, which enters it; None at the first block: of the embeddings, once."""
        parts = [None] if hidden is None else hidden.split(self.together, self.axis)
        out = [self._run(at, part) for part in parts]
        if hidden is None:
            self.axis = 0 if out[0].shape[1] == self.ids.shape[1] else 1
        return torch.cat(out, self.axis)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the last position [copies, V], when the last block gives ``hidden``."""
        parts = []
        for part in hidden.split(self.together, self.axis):
            with skip_to(self.blocks, len(self.blocks) - 1, part, self.width):
                parts.append(call(self.model, *self._rows(part)).logits[:, -1])
        return torch.cat(parts)

    def _run(self, at: int, hidden: torch.Tensor | None) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def stop(_at, out):
            seen.append(out)
            raise _Seen

        try:
            with (watch([self.blocks[at]], stop) as widths,
                  skip_to(self.blocks, at - 1, hidden, self.width) if at else nullcontext()):
                call(self.model, *self._rows(hidden))
        except _Seen:
            self.width = widths[0]
            return seen[0]
        raise UserError(f"block {at} of {type(self.model).__name__} does not run on a text of {self.ids.shape[1]} "
                        "tokens; use another family")

    def _rows(self, hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [copies, T]."""
        rows = self.ids if hidden is None else self.ids.expand(hidden.shape[self.axis], -1)
        return rows, torch.ones_like(rows)
