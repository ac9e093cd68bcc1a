"""Quantizers, allocators and the one accountant of stored bits.  Imports ``core`` and ``streams`` only."""

import quantization.allocators.circuit
import quantization.allocators.common
import quantization.allocators.menu
import quantization.allocators.native
import quantization.solvers.bnb
import quantization.solvers.codebook
import quantization.solvers.gptq
import quantization.solvers.library
import quantization.solvers.rtn
import quantization.solvers.slim
import quantization.solvers.split
import quantization.solvers.spqr  # noqa: F401  (they register themselves)
