"""Tensors out of an entry's file."""

from pathlib import Path

import torch
from safetensors import safe_open


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, on the CPU, by name; read from the file when they are first looked at."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}
