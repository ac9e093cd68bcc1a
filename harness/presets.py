"""Run types: the grids that have a name, and how the given flags override them."""

import os
from dataclasses import fields, replace
from pathlib import Path

from core.errors import UserError
from core.registry import CONTROLS, DATASETS, did_you_mean, resolve_method
from harness.grid import Grid
from quantization.solvers.bnb import functional

BRIEF_MODELS = ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2-7B-Instruct",
                "google/gemma-2-9b-it", "meta-llama/Llama-3.1-8B-Instruct")

DEMO_MODEL = "smollm2-135m"

BRIEF_DATASETS = ("trivia_qa", "mmlu_pro", "code_mmlu")

BRIEF_METHODS = ("TAQ", "TAQO", "TAQoS")

PRESETS = {
    "demo": dict(models=(DEMO_MODEL,), data_source="embedded", calib_size=512, eval_size=2048, max_length=512, avg_bits=(4.25,),
                 quantizer="rtn"),  # minutes on two cores, not half an hour
    "test": dict(models=BRIEF_MODELS, calib_size=32, eval_size=64, score_docs=32, kl_docs=32, oracle_docs=16, max_length=256, avg_bits=(4.25,)),
    "full": dict(models=BRIEF_MODELS, calib_size=512, eval_size=2048, max_length=512, avg_bits=(4.25,), calib_tokens=262144, calib_window=2048),
}


def build_grid(run_type: str, **given) -> Grid:
    """Return the preset of ``run_type`` with every given (not None) field put in its place."""
    if run_type not in PRESETS:
        raise UserError(f"unknown run type {run_type!r}{did_you_mean(run_type, PRESETS)}; use one of: {', '.join(PRESETS)}")
    unknown = set(given) - {f.name for f in fields(Grid)}
    if unknown:
        raise TypeError(f"fields that no grid has: {sorted(unknown)}")
    given = {k: v for k, v in given.items() if v is not None}
    if given.get("data_dir") and "data_source" not in given:
        given["data_source"] = "folder"
    base = dict(run_type=run_type, methods=BRIEF_METHODS, datasets=BRIEF_DATASETS) | PRESETS[run_type]
    grid = Grid(**(base | given))
    for name in grid.datasets:
        DATASETS.get(name)
    grid = replace(grid, methods=with_controls(grid.methods))
    if any(str(resolve_method(name).quantizer).startswith("bnb-") for name in grid.methods):
        functional()  # a package that is not there must not show after hours, at the first bnb row
    for flag in ("results_dir", "cache_dir"):
        check_folder(f"--{flag}", getattr(grid, flag))
    return grid


def check_folder(flag: str, name: str) -> None:
    """Refuse a folder that cannot be written before any work: a file of that name, or one on the way, or no right to write."""
    path = Path(name)
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    if not there.is_dir():
        raise UserError(f"{flag} {name!r} cannot be a folder, because {str(there)!r} is a file; give another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {name!r} cannot be written, because {str(there)!r} is read-only for you; give another folder")


def with_controls(methods: tuple[str, ...]) -> tuple[str, ...]:
    """Put the controls in front, check every name, drop repetitions."""
    specs = {name: resolve_method(name) for name in methods}
    return tuple(dict.fromkeys((*CONTROLS, *specs)))
