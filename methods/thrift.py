"""THRIFT, our own method: TaCQ's ranking, weights kept and scales stored for little, and a solver that is not misled by
few tokens.

"THRIFT"         common row.  TaCQ's score (methods/tacq.py) ranks the weights of the whole model; what is kept takes 8
                 bits and a coded index, scales take 6 bits (core/storage.py), so that 1 % of the weights is kept where
                 fp16 scales, 16-bit weights and a plain index leave room for 0.2 %; correlations between inputs
                 count 20 % less in the Hessian (streams/hessians.py), for 4096 tokens say little of how 1536 inputs go
                 together; and GPTQ takes the columns that weigh most first, while all others can still make good what
                 they lose.
"THRIFT-native"  the same ranking, kept weights and discount over one fp16 scale a row, then scales and kept weights
                 tuned end to end (quantization/tuning.py), which logarithmic scales are too coarse for.

Each ingredient is a setting of any common row that GPTQ solves: ``TaCQ[act_order=true,discount=0.2,kept=8,scales=log]``
is THRIFT, ``uniform[act_order=true,discount=0.2]`` the solver's part alone.
"""

from __future__ import annotations

from core.registry import method

DISCOUNT = 0.2  # chosen on calibration documents (docs/RESULTS.md)
CHEAP = {"kept": 8, "scales": "log"}

method("THRIFT", scorer="TaCQ", settings=CHEAP, discount=DISCOUNT, act_order=True)
method("THRIFT-native", scorer="TaCQ", allocator="global_topk", quantizer="gptq", native=True, bits="N",
       target="budget", discount=DISCOUNT, kept=8, tune=4)
