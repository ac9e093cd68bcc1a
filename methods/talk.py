"""TALK: task-aware library knapsack, our own method.  One price for every bit.

Every linear is solved once in every form of a menu (bits 2 to 8, groups of three sizes or whole rows, kept weights
from none to 1.6 %), the form's price is the loss that it is predicted to cost the task, and one knapsack buys forms
under the budget (harness/stages/library.py, prices.py).

"TALK"            common row: the common quantizer solves the plan once more, the common accountant counts
"TALK-stitched"   put together from the library, nothing solved again, after a short search that takes what measures
                  better (harness/stages/search.py)
"TALK[price=...]", "TALK[mask=...]", "TALK[steps=...]": its ingredients one by one
"""

from __future__ import annotations

from core.registry import method

method("TALK", allocator="menu")
method("TALK-stitched", allocator="menu", quantizer="library", steps=6)
