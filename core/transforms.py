"""Changes of a model before it is quantized that leave what it computes as it was, as they are asked for.

Settings that every row has, whatever its method: they stand in a row's brackets (``uniform[transform=hadamard]``), and
``--transform`` gives every row of a grid each of several.  What they do is in quantization/transforms/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.activations import ACTIVATIONS
from core.settings import SETTINGS, Setting

KINDS = ("none", "smooth", "hadamard")
TRANSFORM = Setting("transform", str, "none", "what is folded into the model before it is quantized: smooth = "
                    "SmoothQuant's scales of channels, hadamard = rotations by the seed (QuaRot)", choices=KINDS,
                    flag=False)
SMOOTH_ALPHA = Setting("smooth_alpha", float, 0.5, "how much of the activations' range smooth moves into the weights",
                       low=0, high=1, flag=False)
TRANSFORMS = SETTINGS.declare((TRANSFORM, SMOOTH_ALPHA), "core")
OF_EVERY_ROW = (*ACTIVATIONS, *TRANSFORMS)
ROTATION_SEEDS = (42, 43, 44)  # of a grid with rotations that names no seeds


@dataclass(frozen=True)
class Transform:
    """What is folded into the model."""

    kind: str = "none"
    alpha: float = 0.0  # of smooth
    seed: int = 0  # of hadamard

    @property
    def plain(self) -> bool:
        """Whether the model stays as loaded."""
        return self.kind == "none"


def rotates(settings: Mapping) -> bool:
    """Whether a row's settings ask for rotations, which its seed draws."""
    return settings.get(TRANSFORM.name) == "hadamard"


def transform_of(settings: Mapping, seed: int) -> Transform:
    """What a row's own settings say."""
    kind = settings.get(TRANSFORM.name, TRANSFORM.default)
    return Transform(kind, settings.get(SMOOTH_ALPHA.name, SMOOTH_ALPHA.default) if kind == "smooth" else 0.0,
                     seed if kind == "hadamard" else 0)
