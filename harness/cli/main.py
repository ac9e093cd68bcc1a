"""The command line of run_taq_icml.py: flags in, tables and an exit status out."""

import os
import shlex
import sys
from dataclasses import fields, replace

from core.commandline import Parser, exit_status
from core.errors import UserError, storage_error
from core.plugins import load_plugin


def main(argv: list[str] | None = None) -> int:
    """Run the grid that the flags describe; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return exit_status(lambda: _main(argv))
    except OSError as error:
        stop = storage_error(error, "a file")
        if stop is None:
            raise
        print(f"error: {stop}", file=sys.stderr)
        return 2


def _main(argv: list[str]) -> int:
    from harness.cli.flags import build_parser, listing

    early = Parser(add_help=False, allow_abbrev=False)  # plugins first: --help and the checks must know their methods
    early.add_argument("--plugin", action="append", default=[])
    for path in early.parse_known_args(argv)[0].plugin:
        load_plugin(path)
    args = {name: value for name, value in vars(build_parser().parse_args(argv)).items() if value is not None}
    asked = [name for name in ("status", "collect", "cancel", "cache_prune") if name in args]
    listed, info = args.pop("list"), args.pop("cache_info")
    if len(asked) + listed + info > 1:
        both = ["list"] * listed + ["cache_info"] * info + asked
        raise UserError(f"--{both[0]} and --{both[1]} are two things to do; give one of them")
    if listed:
        print(listing())
        return 0
    if info or "cache_prune" in args:
        return about_cache(args)
    if asked:
        return about_run(asked[0], args.get("results_dir", "results"), args[asked[0]])
    return run(args)


def run(args: dict) -> int:
    """Run the grid that parsed flags describe, with their executor."""
    from harness.jobs.options import Options
    from harness.presets import build_grid

    plugins = [os.path.abspath(path) for path in args.pop("plugin")]
    token = args.pop("hf_token", None) or os.environ.get("HF_TOKEN")
    dry, where, kind = args.pop("dry_run"), args.pop("export", None), args.pop("format")
    if where and dry:
        raise UserError("--export writes models and --dry_run nothing; give one of them")
    args = {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
    asked = args.get("methods", ())
    options = Options(**{f.name: args.pop(f.name) for f in fields(Options) if f.name in args})
    grid = build_grid(args.pop("run_type", "demo"), **args)
    if options.threads and not grid.threads:  # the executor's workers run it with their threads, if none were asked for
        grid = replace(grid, threads=options.threads)
    if where:
        return export_models(grid, token, asked, where=where, kind=kind)
    if dry:
        return show_dry_run(grid, token, options)
    if options.executor == "local":
        return run_here(grid, token, plugins)
    return run_jobs(grid, token, options, plugins)


def show_dry_run(grid, token: str | None, options) -> int:
    """What would run, and for how long; computes nothing."""
    from harness.forecast.dry_run import dry_run
    from harness.forecast.preflight import preflight
    from harness.grid import cells_of
    from harness.progress import Progress, plain_console
    from harness.stages.case import open_cases

    with Progress(len(cells_of(grid))) as progress:
        cases = open_cases(grid, token, progress)
        cases.computes = False
        preflight(cases, weights=False, limit=options.mem_bytes, workers=options.sharing, gpus=options.gpus,
                  writes=False)
    dry_run(cases, plain_console(), limit=options.mem_bytes, workers=options.workers, sharing=options.sharing)
    return 0


def run_here(grid, token: str | None, plugins: list[str]) -> int:
    """Run the grid in this process, then print its tables."""
    from harness.grid import cells_of
    from harness.jobs.launch import run_local
    from harness.progress import Progress, plain_console
    from report.tables.tables import tables_of
    from report.text.terminal import show

    with Progress(len(cells_of(grid))) as progress:
        results = run_local(grid, token, progress, plugins)
    show(tables_of(grid.results_dir, results), plain_console())
    failures = [result for result in results if not result.ok]
    for result in failures:
        print(f"failed: {result.method.name} on {result.dataset} ({result.model.given}): {result.error}",
              file=sys.stderr)
    return 1 if failures else 0


def export_models(grid, token: str | None, asked: tuple[str, ...], *, where: list[str], kind: str) -> int:
    """Write quantized models as folders."""
    from harness.exports import export_grid
    from harness.progress import Progress

    command = shlex.join(["python", "run_taq_icml.py", *without_token(sys.argv[1:])])
    with Progress(1) as progress:
        for folder, facts in export_grid(grid, token, asked, where=where, kind=kind, command=command,
                                         progress=progress):
            size = facts["bytes"]
            print(f"{folder}: {facts['bits']['average']:.3f} stored bits a weight; linears {size['linears'] / 1e6:.1f} "
                  f"MB in the folder, {size['counted'] / 1e6:.1f} MB counted; all else {size['others'] / 1e6:.1f} MB")
    return 0


def without_token(words: list[str]) -> list[str]:
    """The command line without the hub token, which is never written down."""
    named = [number for number, word in enumerate(words) if word == "--hf_token"]
    return [word for number, word in enumerate(words) if number not in named and number - 1 not in named
            and not word.startswith("--hf_token=")]


def run_jobs(grid, token: str | None, options, plugins: list[str]) -> int:
    """Hand the grid to its executor; wait for processes, and for a cluster if asked, then print the tables."""
    from harness.grid import cells_of
    from harness.jobs.launch import follow, launch
    from harness.jobs.status import collect
    from harness.progress import Progress, plain_console

    if token:
        os.environ["HF_TOKEN"] = token  # jobs inherit the environment; it is never written down
    with Progress(len(cells_of(grid))) as progress:
        board, jobs = launch(grid, token, options, plugins=plugins, progress=progress)
        if options.executor == "slurm" and not options.wait:
            where = "" if grid.results_dir == "results" else f" --results_dir {grid.results_dir}"
            for flag, what in (("status", "where it stands"), ("collect", "its tables"), ("cancel", "stop it")):
                progress.say(f"  python run_taq_icml.py{where} --{flag} {board.id}    # {what}")
            return 0
        if options.executor != "debug":
            follow(board, progress, jobs)
    code = collect(board, plain_console())
    if not code and options.executor != "slurm":
        board.remove()
    return code


def about_cache(args: dict) -> int:
    """--cache_info and --cache_prune."""
    from pathlib import Path

    from harness.grid import Grid
    from harness.progress import plain_console
    from harness.store.inventory import prune, show_cache

    root = Path(args.get("cache_dir") or Grid.cache_dir)
    if not root.is_dir():
        raise UserError(f"--cache_dir {str(root)!r} is no folder; give the one that runs wrote into")
    if "cache_prune" not in args:
        show_cache(root, plain_console())
        return 0
    dry = args["dry_run"]
    gone = prune(root, args["cache_prune"], dry=dry)
    for stage, one in gone.items():
        print(f"{stage}: {one.entries} entries, {one.bytes / 1e9:.3f} GB {'would go' if dry else 'dropped'}")
    print(f"{sum(one.bytes for one in gone.values()) / 1e9:.3f} GB in all")
    return 0


def about_run(what: str, results_dir: str, name: str) -> int:
    """--status, --collect and --cancel."""
    from harness.jobs.board import find_run
    from harness.jobs.queue import cancel
    from harness.jobs.status import collect, show_status
    from harness.progress import plain_console

    board = find_run(results_dir, name)
    if what == "status":
        show_status(board, plain_console())
        return 0
    if what == "collect":
        return collect(board, plain_console())
    stopped = cancel(board)
    print(f"run {board.id}: " + (f"{len(stopped)} jobs stopped: {' '.join(stopped)}" if stopped
                                 else "nothing was running or waiting"))
    return 0
