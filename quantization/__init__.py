"""Quantizers, allocators and the one accountant of stored bits.  Imports ``core`` only."""

from quantization import allocate, native, rtn  # noqa: F401  (they register themselves)
