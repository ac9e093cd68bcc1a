"""What ran: versions and machine, recorded with every result and hashed into none."""

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "datasets", "safetensors")


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Library versions, Python, and this project's commit (with a + when the work tree differs)."""
    libraries = {name: version(name) for name in PACKAGES}
    return libraries | {"python": platform.python_version(), "commit": _commit()}


def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True,
                               timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (head.stdout.strip() + ("+" if dirty.stdout.strip() else "")) if head.returncode == 0 else "unknown"


def peak_bytes() -> int:
    """Highest resident memory of this process so far, in bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes(devices) -> int | None:
    """Highest memory that torch held on these GPUs so far, in bytes, added up; None if none of them is one."""
    import torch

    gpus = {device for device in devices if device.type == "cuda"}
    return sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else None
