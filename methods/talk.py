"""TALK: task-aware library knapsack, our own method.  One price for every bit.

Every linear is solved once in every form of a menu (bits 2 to 8, groups of three sizes or whole rows, kept weights
from none to 1.6 %), the form's price is the loss that it is predicted to cost the task, and one knapsack buys forms
under the budget; then a short search takes what measures better (harness/stages/library.py, prices.py, search.py).

"TALK"            common row: the common quantizer solves, the common accountant counts
"TALK[steps=0]"   as priced, without the search;   "TALK[price=...]", "TALK[mask=...]": its ingredients one by one
"""

from __future__ import annotations

from core.registry import method

method("TALK", allocator="menu", quantizer="library")
