"""The command line of run_taq_icml.py: flags in, tables and an exit status out."""

import os
import sys

from core.commandline import Parser, forgiving_stdout
from core.errors import UserError, storage_error
from harness.cli.flags import build_parser, listing


def main(argv: list[str] | None = None) -> int:
    """Run the grid that the flags describe; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    forgiving_stdout()
    try:
        return _main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        stop = storage_error(error, "a file")
        if stop is None:
            raise
        print(f"error: {stop}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished batches are kept, the same command goes on from there", file=sys.stderr)
        return 130


def _main(argv: list[str]) -> int:
    import evaluation.tasks  # noqa: F401  (registers the data sets)
    import methods
    from harness.jobs.launch import for_workers
    from harness.presets import build_grid

    early = Parser(add_help=False, allow_abbrev=False)  # plugins first: --help and the checks must know their methods
    early.add_argument("--plugin", action="append", default=[])
    for path in early.parse_known_args(argv)[0].plugin:
        methods.load_plugin(path)
    args = vars(build_parser().parse_args(argv))
    if args.pop("list"):
        print(listing())
        return 0
    asked = [name for name in ("status", "collect", "cancel") if args.get(name) is not None]
    if asked:
        return about_run(asked[0], args.get("results_dir") or "results", args[asked[0]])
    for name in ("status", "collect", "cancel"):
        args.pop(name)
    plugins, token = [os.path.abspath(p) for p in args.pop("plugin")], args.pop("hf_token") or os.environ.get("HF_TOKEN")
    dry, eval_only, options = args.pop("dry_run"), args.pop("eval_only"), job_options(args)
    lists = {k: tuple(args.pop(k)) for k in ("models", "methods", "datasets", "avg_bits", "seeds", "levels", "keep_ratio") if args.get(k)}
    grid = for_workers(build_grid(args.pop("run_type"), **args, **lists, eval_only=eval_only or None), options)
    if dry:
        return show_dry_run(grid, token, options)
    if options.executor == "local":
        return run_here(grid, token, plugins)
    return run_jobs(grid, token, options, plugins)


def job_options(args: dict):
    """Take the executor's flags out of the parsed ones."""
    from dataclasses import fields

    from harness.jobs.options import Options

    return Options(**{f.name: tuple(value) if isinstance(value := args.pop(f.name), list) else value for f in fields(Options)})


def show_dry_run(grid, token: str | None, options) -> int:
    """What would run, and for how long; computes nothing."""
    from harness.forecast.dry_run import dry_run
    from harness.forecast.preflight import preflight
    from harness.grid import cells_of
    from harness.jobs.loop import open_sessions
    from harness.progress import Progress, plain_console

    with Progress(len(cells_of(grid))) as progress:
        sessions = open_sessions(grid, token, progress.say)
        preflight(grid, sessions, progress.say, weights=False, limit=options.mem_bytes, workers=options.sharing, gpus=options.gpus)
    dry_run(grid, sessions, plain_console(), limit=options.mem_bytes, workers=options.workers, sharing=options.sharing)
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
    bad = [r for r in results if not r.ok]
    for result in bad:
        print(f"failed: {result.method.name} on {result.dataset} ({result.model.given}): {result.error}", file=sys.stderr)
    return 1 if bad else 0


def run_jobs(grid, token: str | None, options, plugins: list[str]) -> int:
    """Hand the grid to its executor; wait for processes, and for a cluster if asked, then print the tables."""
    from harness.grid import cells_of
    from harness.jobs.launch import follow, launch
    from harness.jobs.status import collect
    from harness.progress import Progress, plain_console

    if token:
        os.environ["HF_TOKEN"] = token  # jobs inherit the environment; it is never written down
    with Progress(len(cells_of(grid))) as progress:
        board, jobs = launch(grid, token, options, plugins, progress.say)
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
    print(f"run {board.id}: " + (f"{len(stopped)} jobs stopped: {' '.join(stopped)}" if stopped else "nothing was running or waiting"))
    return 0
