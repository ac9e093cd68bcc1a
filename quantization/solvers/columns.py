"""Columns of one linear: which of them share a grid."""

from core.types import LayerPlan

BLOCK = 128


class Groups:
    """Which columns share a scale, and at how many bits."""

    def __init__(self, layer: LayerPlan, width: int):
        self.size, self.width = min(layer.group_size, width), width
        self.count = -(-width // self.size)
        self.bits = [layer.bits] * self.count if layer.group_bits is None else [int(b) for b in layer.group_bits]

    def span(self, group: int) -> slice:
        return slice(group * self.size, min((group + 1) * self.size, self.width))

    def block(self) -> int:
        """Columns whose updates are gathered before the rest sees them; groups never straddle a block's end."""
        if self.count == 1:
            return BLOCK
        if self.size < BLOCK:
            return self.size * (BLOCK // self.size)
        return max(d for d in range(1, BLOCK + 1) if self.size % d == 0)
