"""Controls made of a row itself: its scores shuffled, or of ``uniform`` its fill order (``TaCQ[shuffle=1]``).

What a score is worth is its lead over these, not over one random draw or one order.
"""

from __future__ import annotations

from core.settings import SETTINGS, Setting

SHUFFLE = Setting("shuffle", int, 0, "draw that puts the row's scores in the place of one another, or draws uniform's "
                  "fill order; 0: as they are", low=0, flag=False)
SHUFFLED = "uniform"  # the allocator whose order is drawn
SETTINGS.declare((SHUFFLE,), "core")


def can_shuffle(scorer: str | None, allocator: str | None) -> bool:
    """Whether a row has anything to shuffle."""
    return scorer is not None or allocator == SHUFFLED
