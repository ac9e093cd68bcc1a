"""bitsandbytes as base quantizers and controls: 4-bit NF4 and FP4 in blocks of 64, LLM.int8 a row; no score, no data.

NF4: arXiv 2305.14314; LLM.int8: arXiv 2208.07339.  Their rows show their own true bits (4.5, 4.5 and about 8).
"""

from core.registry import method

for _kind, _paper in (("nf4", "arXiv:2305.14314"), ("fp4", "arXiv:2305.14314"), ("int8", "arXiv:2208.07339")):
    method(f"bnb-{_kind}", allocator="bnb", quantizer=f"bnb-{_kind}", native=True, paper=_paper, kind=_kind)
