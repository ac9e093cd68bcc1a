"""Quantizers, allocators and the one accountant of stored bits.  Imports ``core`` only."""

from quantization import allocate, bnb, codebook, gptq, native, rtn, slim, spqr  # noqa: F401  (they register themselves)
