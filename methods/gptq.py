"""GPTQ and round-to-nearest without any score.

"GPTQ-native"  the public code as the TaCQ paper runs it: N whole bits of the budget, one scale a row, 80 shrinks of the
               range tried for Σ|w−q|^2.4, columns as they stand, 1 % damping, linears of a block one input after the
               other.
"GPTQ-budget-native"  the same filled to the budget: in spread order, linears at one bit more.
"rtn"          the uniform control rounded to nearest instead of solved: what the solver itself is worth.
Paper: arXiv 2210.17323.  The common quantizer "gptq" is the same solver with the grid's groups
(quantization/solvers/gptq.py).
"""

from core.registry import method

method("GPTQ-native", allocator="flat", quantizer="gptq", native=True, paper="arXiv:2210.17323", bits="N",
       search="published")
method("GPTQ-budget-native", allocator="flat_raised", quantizer="gptq", native=True, paper="arXiv:2210.17323",
       search="published", target="budget")
method("rtn", allocator="uniform", quantizer="rtn")
