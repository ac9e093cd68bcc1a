"""The parts of a grid: groups of scores first, then the cells.

Scores that share one backward pass are one group, so that no two jobs wait for each other; every other scorer's
scores are a group of their own.  Cells of one group differ in budget, allocator or quantizer only.
"""

from harness.config import Grid, cells_of
from harness.data import cell_data
from harness.keys import scores_key, upstream_keys
from harness.session import Session


def score_groups(grid: Grid, sessions: dict[str, Session]) -> tuple[list[list[int]], list[set[int]]]:
    """Groups of cells by number, one cell for each different scores, grouped by what they share; and all cells that read each group's scores."""
    groups: dict[str, list[int]] = {}
    readers: dict[str, set[int]] = {}
    seen: set[str] = set()
    for index, cell in enumerate(cells_of(grid)):
        if not cell.method.scorer:
            continue
        session = sessions[cell.model]
        data = cell_data(session, cell.dataset)
        key, shared = scores_key(session, cell, data)[0], upstream_keys(session, cell, data)[0]  # the gradients' key, or the scores' own
        readers.setdefault(shared, set()).add(index)
        if key not in seen:
            seen.add(key)
            groups.setdefault(shared, []).append(index)
    return list(groups.values()), [readers[shared] for shared in groups]
