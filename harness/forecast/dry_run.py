"""The dry run: every cell, what is there already, and about how much time and memory it takes."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.forecast.limits import cpu_limit
from harness.forecast.memory import Parts, devices_of, memory
from harness.forecast.sizes import finished
from harness.forecast.time import Costs
from harness.grid import seeded
from harness.stages.case import Case, Cases
from harness.stages.scores import scores_needed

HEADS = ("model", "data set", "method", "bits", "seed", "state", "scores", "time", "weights", "activations",
         "scores + solver", "memory")


def dry_run(cases: Cases, console: Console, limit: int | None = None, workers: int = 1, sharing: int = 1) -> None:
    """Print every cell: whether it is done, whether its scores are there, and about how much time and memory (GB) it
    takes.

    limit: bytes of memory that a worker may use, the machine's if None; workers: how many cells run at a time;
    sharing: processes that share this machine's memory, 0 if they run elsewhere.
    """
    table, total = Table(*HEADS, title="Dry run (memory in GB)"), 0.0
    for name, model in cases.models.items():
        costs = Costs(model)
        for case in cases.of_model(name):
            seconds = costs.seconds(case)
            total += seconds
            table.add_row(*map(Text, _row(case, seconds)))  # brackets of a method's settings are no markup
    console.print(table)
    console.print(peaks(cases))
    size, whose = cpu_limit(limit, sharing)
    shared = f", shared by {workers} workers" if workers > 1 else ""
    memory_of = f"{size / 1e9:.1f} GB are {whose}; " if sharing or limit is not None else ""
    console.print(f"About {duration(total / workers).lstrip('~')} of work{shared}, models to be loaded not "
                  f"counted; {memory_of}nothing was computed.")


def peaks(cases: Cases) -> Table:
    """Of each model and stage that is still to come: the most that a cell takes on a GPU and on the CPU, and which
    cells do.
    """
    table = Table("model", "stage", "GPU", "in", "CPU", "in", title="Peak of each stage (GB)")
    for name, model in cases.models.items():
        todo = [case for case in cases.of_model(name) if not finished(case)]
        for stage, ((gpu, there), (cpu, here)) in highest(todo).items():
            on_gpu = (gigabytes(gpu), there) if gpu else ("-", "-")
            table.add_row(*map(Text, (model.ref.name, stage, *on_gpu, gigabytes(cpu), here)))
    return table


def highest(cases: list[Case]) -> dict[str, tuple[tuple[int, str], tuple[int, str]]]:
    """stage -> (bytes, row) of the cell that takes the most of the GPU, and of the one that takes the most of the CPU.
    """
    sizes: dict[str, list[tuple[int, int, str]]] = {}
    for case in cases:
        for stage in memory(case):
            on_gpu = any(device.type == "cuda" for device in devices_of(case, stage.name))
            split = (stage.device, stage.host) if on_gpu else (0, stage.total)
            sizes.setdefault(stage.name, []).append((*split, case.method.name))
    tops = {stage: [max(every, key=lambda one, at=at: one[at]) for at in (0, 1)] for stage, every in sizes.items()}
    return {stage: ((gpu[0], gpu[2]), (cpu[1], cpu[2])) for stage, (gpu, cpu) in tops.items()}


def _row(case: Case, seconds: float) -> list[str]:
    cell, done = case.cell, finished(case)
    scored = "-" if not case.method.scorer else "cached" if case.store.has(scores_needed(case)) else "to do"
    bits = "own" if cell.avg_bits is None else f"{cell.avg_bits:g}"
    seed = str(cell.seed) if seeded(case.method) else "-"
    sizes = ["-"] * 4 if done else memory_columns(case, memory(case))
    return [case.model.ref.name, cell.dataset, case.method.name, bits, seed, "cached" if done else "to do", scored,
            duration(seconds), *sizes]


def memory_columns(case: Case, stages: list[Parts]) -> list[str]:
    """Bytes at the stage that takes the most: weights, activations, scores and solver, all."""
    top = max(stages, key=lambda stage: stage.total)
    on_gpu = [stage for stage in stages if any(d.type == "cuda" for d in devices_of(case, stage.name))]
    host = max(stage.host if stage in on_gpu else stage.total for stage in stages)
    gpu = f"{gigabytes(max(stage.device for stage in on_gpu))} + " if on_gpu else ""
    whole = f"{gpu}{gigabytes(host)}{' CPU' if on_gpu else ''}"
    return [gigabytes(top.weights + top.originals), gigabytes(top.activations), gigabytes(top.scores + top.solver),
            f"~{whole}"]


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def duration(seconds: float) -> str:
    """Seconds, from two minutes on minutes, from two hours on hours."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"~{seconds / size:.1f} {unit}"
    return f"~{seconds:.0f} s"
