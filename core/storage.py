"""How a common row stores its grid, where it is told otherwise than the others: ``TaCQ[groups=48,scales=log]``."""

from __future__ import annotations

from core.settings import SETTINGS, Setting

GROUPS = Setting("groups", int, None, "input columns that share a scale (default: --group_size)", low=8, flag=False)
SCALES = Setting("scales", str, "fp16", "how scales are stored: fp16, or log: 6 bits, eighths of an octave below one "
                 "exponent a linear", choices=("fp16", "log"), flag=False)
LOG_BITS = 6
OF_COMMON_ROWS = SETTINGS.declare((GROUPS, SCALES), "core")
