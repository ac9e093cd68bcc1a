"""Run types: the grids that have a name, and how the given flags override them."""

import os
from dataclasses import fields, replace
from pathlib import Path

from core.calibration import AND, parse_calib
from core.errors import UserError, did_you_mean
from core.method_names import readable, resolve_method, told, variants
from core.registry import COMMON, CONTROLS
from core.settings import SETTINGS
from core.shuffle import SHUFFLE, can_shuffle
from core.transforms import ROTATION_SEEDS, rotates
from evaluation.tasks import get_task, get_tasks
from evaluation.tasks.lm_eval import look_in
from harness.grid import Grid, cells_of, is_read, reads_solver_calib, with_methods
from quantization.packing.checkpoint import is_export

DEMO_MODEL = "smollm2-135m"
BRIEF_MODELS = ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2-7B-Instruct",
                "google/gemma-2-9b-it", "meta-llama/Llama-3.1-8B-Instruct")
EVERY = dict(models=BRIEF_MODELS, methods=("TAQ", "TAQO", "TAQoS"), datasets=("trivia_qa", "mmlu_pro", "code_mmlu"),
             avg_bits=(4.25,))
BLIND = ("random", "equal")  # scorers whose shuffles are themselves, or another draw
PRESETS = {
    "demo": EVERY | dict(models=(DEMO_MODEL,), data_source="embedded", methods=("TAQ", "THRIFT"),
                         avg_bits=(2.75,), calib_size=128, eval_size=128, calib_tokens=2048,
                         score_docs=128),
    "test": EVERY | dict(calib_size=32, eval_size=64, score_docs=32, kl_docs=32, oracle_docs=16, max_length=256),
    "full": EVERY | dict(calib_tokens=262144, calib_window=2048),
}


def build_grid(run_type: str, conditioning: tuple[str, ...] = (), shuffles: int = 0, **given) -> Grid:
    """The preset of ``run_type`` with every given (not None) field, or setting of a method, put in its place.

    ``conditioning``: each method that reads calibration data comes once on each of these (:func:`conditioned`).
    ``shuffles``: as many rows more of uniform and of each method that scores, shuffled (core/shuffle.py).
    """
    if run_type not in PRESETS:
        raise UserError(f"unknown run type {run_type!r}{did_you_mean(run_type, PRESETS)}; use one of: "
                        f"{', '.join(PRESETS)}")
    given = {k: v for k, v in given.items() if v is not None}
    names = {f.name for f in fields(Grid)}
    unknown = [name for name in given if name not in names and name not in SETTINGS]
    if unknown:
        known = (*names, *(setting.name for setting in SETTINGS))
        raise UserError(f"no grid has a field or setting {unknown[0]!r}{did_you_mean(unknown[0], known)}; "
                        "--help lists them")
    if run_type == "demo" and "datasets" not in given:  # one solve for all three: the demo must end in minutes
        given["settings"] = {"calib_dataset": AND.join(EVERY["datasets"])} | given.get("settings", {})
    if given.get("data_dir") and "data_source" not in given:
        given["data_source"] = "folder"
    asked = PRESETS[run_type] | given
    if "methods" not in given:  # a row that needs another quantizer is refused where it is asked for by name
        asked["methods"] = tuple(name for name in asked["methods"] if is_read(
            resolve_method(name), asked.get("quantizer", Grid.quantizer)))
    settings = given.get("settings", {}) | {k: asked.pop(k) for k in [*asked] if k in SETTINGS and k not in names}
    grid = Grid(**{"run_type": run_type} | asked | {"settings": settings})
    look_in(grid.lm_eval_path)
    for name in grid.datasets:
        get_task(name)
    if grid.value("calib_dataset"):
        get_tasks(grid.value("calib_dataset"))
    if exported := [name for name in grid.models if is_export(name)]:  # quantized already: asked, not quantized again
        grid = replace(grid, methods=grid.methods if "methods" in given else ("fp16",))
    controls = CONTROLS if len(exported) < len(grid.models) else ("fp16",)
    grid = with_methods(grid, (*controls, *conditioned(grid, conditioning)))
    grid = with_methods(grid, (*grid.methods, *shuffled_rows(grid, shuffles)))
    if "seeds" not in given and any(rotates(cell.method.settings) for cell in cells_of(grid)):
        grid = replace(grid, seeds=ROTATION_SEEDS)
    if any(str(resolve_method(name).quantizer).startswith("bnb-") for name in grid.methods):
        from quantization.solvers.bnb import functional

        functional()  # a package that is not there must not show after hours, at the first bnb row
    for flag in ("results_dir", "cache_dir"):
        check_folder(f"--{flag}", getattr(grid, flag))
    return grid


def row_grid(run_type: str | None = None, **given) -> Grid:
    """The grid of functions and scripts that ask for single rows: the demo's model and data, but of whole size, rounded
    to nearest and at 4.25 bits; or a run type's.
    """
    alone = dict(methods=("fp16",), quantizer="rtn", avg_bits=(4.25,), calib_size=512, eval_size=2048,
                 calib_tokens=8192, score_docs=256)
    return build_grid(run_type or "demo", **({} if run_type else alone) | {
        name: value for name, value in given.items() if value is not None})


def conditioned(grid: Grid, conditioning: tuple[str, ...]) -> tuple[str, ...]:
    """Every method of a grid on every kind of calibration data: ``TaCQ`` on task and c4: TaCQ and TaCQ[calib=c4].

    A method that reads no calibration data, or says in its brackets on what it calibrates, stays one row.
    """
    mixed = {text for text in conditioning if parse_calib(text).kind in ("mix", "auto")}
    rows = []
    for name in grid.methods:
        spec = resolve_method(name)
        if not conditioning or "calib" not in readable(spec, grid.quantizer)[0] or "calib" in spec.settings:
            rows.append(name)
            continue
        given = name.removesuffix("]").partition("[")[2]
        solves = reads_solver_calib(variants(spec, grid.quantizer, grid.avg_bits, grid.by_option)[0][0])
        for text in conditioning:
            if text in mixed and not solves:
                continue  # prompts without answers are never mixed with text
            inside = ",".join(filter(None, (given, "" if text == grid.value("calib") else f"calib={text}")))
            rows.append(f"{spec.plain}[{inside}]" if inside else spec.plain)
    return tuple(rows)


def shuffled_rows(grid: Grid, count: int) -> tuple[str, ...]:
    """The names of ``count`` shuffles of each of the grid's rows that has anything to shuffle, but of random ones."""
    if count < 0:
        raise UserError(f"--shuffles is {count}; give 0 or more draws")
    specs = [spec for spec in map(resolve_method, grid.methods) if can_shuffle(spec.scorer, spec.allocator)
             and spec.scorer not in BLIND and spec.quantizer == COMMON and SHUFFLE.name not in spec.settings]
    return tuple(told(spec, **{SHUFFLE.name: draw}).name for spec in specs for draw in range(1, count + 1))


def check_folder(flag: str, name: str) -> None:
    """Refuse a name that cannot be a folder before any work: a file of that name, or one on the way."""
    there = existing(Path(name))
    if not there.is_dir():
        raise UserError(f"{flag} {name!r} cannot be a folder, because {str(there)!r} is a file; give another folder")


def check_writable(flag: str, name: str) -> None:
    """Refuse a folder that must be written and cannot be."""
    there = existing(Path(name))
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {name!r} cannot be written, because {str(there)!r} is read-only for you; give another "
                        "folder")


def existing(path: Path) -> Path:
    """The path, or what there is of it."""
    return next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
