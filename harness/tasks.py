"""The parts of a grid: groups of scores first, then the cells.

Scores that share one backward pass are one group, so that no two jobs wait for each other; every other scorer's
scores are a group of their own.  Cells of one group differ in budget, allocator or quantizer only.
"""

from harness.config import Grid, cells_of
from harness.data import cell_data
from harness.keys import scores_key, upstream_keys
from harness.session import Session


def score_groups(grid: Grid, sessions: dict[str, Session]) -> list[list[int]]:
    """Numbers of the cells whose scores must be made, one cell for each different scores, grouped by what they share."""
    groups: dict[str, list[int]] = {}
    seen: set[str] = set()
    for index, cell in enumerate(cells_of(grid)):
        if not cell.method.scorer:
            continue
        session = sessions[cell.model]
        data = cell_data(session, cell.dataset)
        key = scores_key(session, cell, data)[0]
        if key not in seen:
            seen.add(key)
            groups.setdefault(upstream_keys(session, cell, data)[0], []).append(index)  # the gradients' key, or the scores' own
    return list(groups.values())
