"""How much a grid will still write, and whether there is room for it."""

import shutil

from core.errors import UserError
from core.registry import QUANTIZERS, SCORERS
from harness.forecast.memory import kinds_to_make
from harness.forecast.sizes import dims, finished, stored
from harness.grid import Cell
from harness.stages.base_quantized import corrupted_key
from harness.stages.documents import cell_data
from harness.stages.gradients import gradients_key
from harness.stages.model import Session
from harness.stages.options import reads_data
from harness.stages.scores import scores_key
from streams.gradients import KINDS

SMALL = 2**28  # bytes for samples, plans and all scores that are not one number a weight


def check_disk(session: Session, cells: list[Cell], workers: int = 1) -> None:
    """Room for what these cells will still write."""
    needed = disk_bytes(session, cells, workers)
    free = shutil.disk_usage(session.store.root).free
    if free < needed:
        raise UserError(f"{session.store.root} has {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB are needed; free some or use --cache_dir")


def disk_bytes(session: Session, cells: list[Cell], workers: int = 1) -> int:
    """Bytes of what is not stored yet: element scores, gradient sums, quantized models to compare with, the pieces of all these; samples.

    Pieces are there once for each cell in work: solved blocks in the model's dtype, and two snapshots of gradient sums while one takes the
    other's place.  How many jobs of a cluster work at a time is not known here (workers 0): they count once, and every job asks again.
    """
    entries, compared, passes, solving = set(), set(), {}, 0
    for cell in cells:
        data = cell_data(session, cell.dataset)
        if finished(session, cell, data):
            continue
        scored = scores_key(session, cell, data)[0] if cell.method.scorer else None
        spec = SCORERS.get(cell.method.scorer) if scored and not stored(session, scored) else None
        kinds = kinds_to_make(session, cell, data, spec)
        entries |= {gradients_key(session, cell, data, kind)[0] for kind in kinds} | ({scored} if spec and spec.granularity == "element" else set())
        passes |= {gradients_key(session, cell, data, KINDS[0])[0]: len(kinds)} if kinds else {}
        if spec and "corrupt" in spec.params:
            compared.add(corrupted_key(session, cell, data)[0])
        solving += reads_data(cell)
    d, at_once, compared = dims(session), max(1, workers), {key for key in compared if not stored(session, key)}
    snapshots = 2 * sum(sorted(passes.values())[-at_once:])
    pieces = min(at_once, solving) + (min(at_once, len(compared)) if QUANTIZERS.get(session.grid.corrupt).needs else 0)
    return d.linears * (4 * (len(entries) + snapshots) + d.itemsize * (len(compared) + pieces)) + SMALL
