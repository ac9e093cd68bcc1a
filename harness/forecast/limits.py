"""How much memory there is, and which cells cannot fit in it; said before the grid starts.

On a CPU the limit is the least of the machine's RAM, the limits of the cgroup that this process is in and of all
above it (containers and batch jobs are held by these, far below the machine's RAM), and what the caller says that a
worker may use.  With a GPU, its memory is a second budget; where a job on another machine has the GPU, its size is not
known here, and only what stays on the job's CPU is compared: the job compares the rest when it starts.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import UserError
from core.placement import Devices
from harness.forecast.memory import ATTRIBUTED, GRADIENTS, Parts, devices_of, memory
from harness.forecast.sizes import finished
from harness.stages.case import Case

HOST, DEVICE = ("originals", "scores", "process"), ("weights", "activations", "solver", "context")
MENDS = {"weights": "--dtype bf16 or a smaller model", "originals": "--dtype bf16 or a smaller model",
         "process": "a smaller model",
         "scores": "the grid without this method (--method)",
         "solver": "a lower --calib_tokens or the grid without this method (--method)", "context": "--device cpu"}
LONGEST = (GRADIENTS, "linears are solved")  # stages whose activations go with the longest document


@dataclass(frozen=True)
class Limit:
    """A budget: bytes, the parts that share it, and whose limit it is."""

    bytes: int
    parts: tuple[str, ...]
    whose: str


def cgroup_limit(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The least memory limit of the process's cgroup and all above it, v2 or v1; None where there is none."""
    limits = []
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        here = top / path.lstrip("/")
        for folder in (here, *here.parents):
            if folder == top or top in folder.parents:
                file = folder / name
                text = file.read_text().strip() if file.is_file() else "max"
                limits += [int(text)] if text.isdigit() else []
    return min(limits, default=None)


def cpu_limit(limit: int | None = None, workers: int = 1) -> tuple[int, str]:
    """Bytes that one worker may use on the CPU, and whose limit that is.

    limit: what the caller gives each worker; workers: processes that share this machine's memory, 0 if they run on
    others.
    """
    if not workers:
        return (limit, "the limit for a job (--mem)") if limit is not None else (sys.maxsize, "not known here (--mem)")
    share = "" if workers == 1 else f", shared by {workers} workers"
    offers = [(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // workers,
              "the memory of this machine" + share)]
    held = cgroup_limit()
    offers += [(held // workers, "the cgroup limit of this container or batch job" + share)] if held is not None else []
    if limit is not None:
        offers.append((limit, "the limit for a worker (--mem, or this machine's memory shared out)"))
    return min(offers, key=lambda pair: pair[0])


def limits(devices: Devices, limit: int | None = None, workers: int = 1, gpus: int = 0) -> list[Limit]:
    """The budgets of a stage on these devices; gpus: those of a job elsewhere, the model being on the CPU here."""
    size, whose = cpu_limit(limit, workers)
    if all(device.type != "cuda" for device in devices):
        return [Limit(size, HOST if gpus and not workers else HOST + DEVICE, whose)]
    sharers = max(1, -(-workers // max(1, torch.cuda.device_count())))  # workers get the GPUs in turn
    together = sum(torch.cuda.get_device_properties(device).total_memory // sharers if device.type == "cuda" else size
                   for device in devices)
    share = "" if sharers == 1 else f", shared by {sharers} workers"
    named = f"the memory of {' and '.join(map(str, devices))}{share}"
    return [Limit(together, DEVICE, named), Limit(size, HOST, whose)]


def used(parts: Parts, budget: Limit) -> int:
    """Bytes that a stage takes of a budget."""
    return sum(getattr(parts, name) for name in budget.parts)


def check_fits(cases: list[Case], limit: int | None = None, workers: int = 1, *, gpus: int = 0) -> None:
    """Raise one error that names the first cell that cannot fit, with the numbers, if there is any."""
    misfits: list[tuple[Case, Parts, Limit]] = []
    for case in cases:
        if finished(case):
            continue
        over = [(case, stage, budget) for stage in memory(case)
                for budget in limits(devices_of(case, stage.name), limit, workers, gpus)
                if used(stage, budget) > budget.bytes]
        if over:
            misfits.append(max(over, key=lambda misfit: used(misfit[1], misfit[2]) / misfit[2].bytes))
    if misfits:
        case, stage, budget = misfits[0]
        sizes = ", ".join(f"{name} {getattr(stage, name) / 1e9:.2f}" for name in budget.parts if getattr(stage, name))
        raise UserError(f"{case.cell.label} needs about {used(stage, budget) / 1e9:.2f} GB while {stage.name} "
                        f"({case.model.ref.name}: {sizes}), {budget.whose} is {budget.bytes / 1e9:.2f} GB, and "
                        f"{len(misfits)} of {len(cases)} cells cannot fit; use {mend(case, stage, budget)}, or more "
                        "memory")


def mend(case: Case, stage: Parts, budget: Limit) -> str:
    """What makes the largest part smaller."""
    largest = max(budget.parts, key=lambda name: getattr(stage, name))
    widened = case.value("grad_dtype") == "fp32" and case.model.ref.dtype != "float32"
    if largest == "weights" and stage.name in (GRADIENTS, ATTRIBUTED) and widened:
        return "--grad_dtype bf16"
    if largest == "activations":
        asked = "--batch_size" if case.grid.batch_size else "--batch_tokens"
        return f"a lower {'--max_length or --calib_window' if stage.name in LONGEST else asked}"
    in_files = largest in ("weights", "originals") or (largest == "scores" and stage.name in LONGEST)
    if in_files and not case.model.offloaded:
        return f"--offload {'cpu' if largest == 'weights' and budget.parts == DEVICE else 'disk'}, {MENDS[largest]}"
    return MENDS[largest]
