"""How much each attention head matters while a model is being trained: hooks for a training loop of one's own.

    I_h ← β·I_h + (1 − β)·mean over tokens of Σ_c |∂L/∂a_h,c|        after every backward pass; unit of L per activation

a_h: the head's output, its slice of the input to the attention's output projection; L: the loop's own loss.  The sum is
divided by 1 − β^n after n passes, so that the first ones do not count too little.

    with AdaptiveImportance(model) as importance:
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step(); optimizer.zero_grad()
    importance.best(0.1)        # the tenth of the heads with the highest average: [(block, head), ...]
"""

from __future__ import annotations

import torch
from torch import nn

from core.architecture import find_heads, find_linears
from core.errors import UserError


class AdaptiveImportance:
    """An exponential average of gradients a head; a context manager, or :meth:`close` takes the hooks away.

    Raises UserError for a rate outside [0, 1), and for a model whose heads cannot be told apart.
    """

    def __init__(self, model: nn.Module, beta: float = 0.9):
        if not 0 <= beta < 1:
            raise UserError(f"beta is {beta}; give a share of the old average from 0 to below 1, such as 0.9")
        self.beta, self.attention, linears = beta, find_heads(model), find_linears(model)[0]
        self.passes = [0] * len(self.attention)  # backward passes that each block has seen
        self._average = [torch.zeros(one.heads, dtype=torch.float64) for one in self.attention]
        self._hooks = [linears[one.o].register_full_backward_hook(self._hook(block))
                       for block, one in enumerate(self.attention)]

    def _hook(self, block: int):
        def see(_module, grad_input, _grad_output):
            grad = grad_input[0]
            if grad is None:  # nothing before this linear is trained
                return
            one = self.attention[block]
            of_head = grad.detach().float().abs().view(-1, one.heads, one.width).sum(2).mean(0).double().cpu()
            self._average[block] = self.beta * self._average[block] + (1 - self.beta) * of_head
            self.passes[block] += 1
        return see

    @property
    def scores(self) -> list[torch.Tensor]:
        """The average of every head, float64 [heads] a block; zeros where no pass was seen."""
        return [average / (1 - self.beta**count) if count else average
                for average, count in zip(self._average, self.passes)]

    def best(self, share: float) -> list[tuple[int, int]]:
        """The best ``share`` of all heads as (block, head), highest first."""
        ranked = sorted(((float(value), block, head) for block, of_block in enumerate(self.scores)
                         for head, value in enumerate(of_block)), key=lambda entry: (-entry[0], *entry[1:]))
        return [(block, head) for _, block, head in ranked[:max(1, round(share * len(ranked)))]]

    def close(self) -> None:
        """Take the hooks away; the averages stay."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> AdaptiveImportance:
        return self

    def __exit__(self, *_error) -> None:
        self.close()
