"""How a common row stores its grid, where it is told otherwise than others: ``TaCQ[groups=48,scales=log,kept=8]``."""

from __future__ import annotations

from core.settings import SETTINGS, Setting

GROUPS = Setting("groups", int, None, "input columns that share a scale (default: --group_size)", low=8, flag=False)
SCALES = Setting("scales", str, "fp16", "how the grid is stored: fp16 scales; log: scales of 6 bits, eighths of an "
                 "octave below one exponent a linear; table: such scales, no zero points, and codes that stand for the "
                 "values of a table fitted to the linear", choices=("fp16", "log", "table"), flag=False)
KEPT = Setting("kept", int, 16, "bits of a kept weight: 16 beside a plain index of where they are, or 8 (a float of 3 "
               "binary digits) beside a coded one", choices=(16, 8), flag=False)
SYMMETRIC = Setting("symmetric", bool, False, "ranges around zero, so that no zero points need be stored", flag=False)
LOG_BITS = 6
# what a Budget says of them, where it is not the default
STORED_SCALES = {"fp16": {}, "log": {"scale_bits": LOG_BITS},
                 "table": {"scale_bits": LOG_BITS, "zero_bits": 0, "table": True}}
OF_COMMON_ROWS = SETTINGS.declare((GROUPS, SCALES, KEPT, SYMMETRIC), "core")
