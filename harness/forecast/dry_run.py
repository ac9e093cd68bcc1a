"""The dry run: every cell, what is there already, and about how much time and memory it takes."""

from rich.console import Console
from rich.table import Table

from harness.forecast.limits import cpu_limit
from harness.forecast.memory import Parts, memory
from harness.forecast.sizes import finished, stored
from harness.forecast.time import Costs
from harness.grid import Grid, cells_of, seeded
from harness.stages.documents import cell_data
from harness.stages.model import Session
from harness.stages.scores import scores_key


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def dry_run(grid: Grid, sessions: dict[str, Session], console: Console, limit: int | None = None, workers: int = 1, sharing: int = 1) -> None:
    """Print every cell: whether it is done, whether its scores are there, and about how much time and memory (GB) it takes.

    limit: bytes of memory that a worker may use, the machine's if None; workers: how many cells run at a time;
    sharing: processes that share this machine's memory, 0 if they run elsewhere.
    """
    table = Table("model", "data set", "method", "bits", "seed", "state", "scores", "time", "weights", "activations", "scores + solver", "memory",
                  title="Dry run (memory in GB)")
    total = 0.0
    for name, session in sessions.items():
        costs = Costs(session)
        for cell in (c for c in cells_of(grid) if c.model == name):
            data = cell_data(session, cell.dataset)
            seconds = costs.seconds(cell, data)
            total += seconds
            done = finished(session, cell, data)
            scored = "-" if not cell.method.scorer else "cached" if stored(session, scores_key(session, cell, data)[0]) else "to do"
            table.add_row(session.ref.name, cell.dataset, cell.method.name, "own" if cell.avg_bits is None else f"{cell.avg_bits:g}",
                          str(cell.seed) if seeded(cell.method) else "-", "cached" if done else "to do", scored, duration(seconds),
                          *(["-"] * 4 if done else memory_columns(session, memory(session, cell, data))))
    console.print(table)
    size, whose = cpu_limit(limit, sharing)
    console.print(f"About {duration(total / workers).lstrip('~')} of work" + (f", shared by {workers} workers" if workers > 1 else "")
                  + ", models to be loaded not counted; " + (f"{size / 1e9:.1f} GB are {whose}; " if sharing or limit is not None else "")
                  + "nothing was computed.")


def memory_columns(session: Session, stages: list[Parts]) -> list[str]:
    """Weights (as loaded, and the linears once more), activations, scores and solver, all, at the stage that takes the most."""
    top = max(stages, key=lambda stage: stage.total)
    device = max(stage.device for stage in stages)
    whole = gigabytes(top.total) if session.device.type != "cuda" else f"{gigabytes(device)} + {gigabytes(max(s.host for s in stages))} CPU"
    return [gigabytes(top.weights + top.originals), gigabytes(top.activations), gigabytes(top.scores + top.solver), f"~{whole}"]


def duration(seconds: float) -> str:
    """Seconds, from two minutes on minutes, from two hours on hours."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"~{seconds / size:.1f} {unit}"
    return f"~{seconds:.0f} s"
