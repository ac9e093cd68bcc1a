"""The command line of run_taq_icml.py: every field of the grid has a flag, and --help reads like a manual page."""

import argparse
import os
import sys

from core.errors import UserError

DESCRIPTION = """\
Which quantization method keeps the most of a task at the same number of stored bits?

Runs a grid of model x method x dataset x budget. Every method scores the linears of the model on the task,
one allocator turns scores into bits under one enforced budget of stored bits (scales, zero points and indices
included), and the quantized model is evaluated document by document against full precision.
"""
EPILOG = """\
run types
  demo   SmolLM2-135M-Instruct (fetched from PyPI), the embedded data sets, 4.25 bits; minutes on two CPU cores
  test   the five models, hub data, 32 documents calibrate and 64 evaluate, 4.25 bits
  full   the five models, hub data, 512 documents calibrate and 2048 evaluate, 4.25 bits
  Any flag above overrides its field of the preset. fp16, uniform and random are always added.

methods
  {methods}
  A name ending in -native is the published form with its own allocation, quantizer and true bits.
  Native rows and bnb-* do not meet the budget; where they have a choice they take its whole bits (2.25 -> 2).
  scorer+allocator[+quantizer] builds a combination, e.g. TAQ+knapsack+rtn.

data sets
  {datasets}

examples
  python run_taq_icml.py --run_type demo
  python run_taq_icml.py --run_type demo --method TAQ TAQ-native --avg_bits 3.5 4.25 --dataset trivia_qa
  python run_taq_icml.py --run_type full --model Qwen/Qwen2.5-3B-Instruct --avg_bits 4.25
  python run_taq_icml.py --run_type demo --data_dir DATA --eval_size 512     # DATA in the hub's layout
  python run_taq_icml.py --run_type test --dry_run                          # what would run, and for how long

exit status: 0 all cells done, 1 at least one cell failed, 2 unusable input, 130 interrupted.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser; defaults are None so that a preset shows through."""
    from core.registry import DATASETS, METHODS

    wrapped = "\n  ".join(_wrap(list(METHODS)))
    parser = argparse.ArgumentParser(prog="run_taq_icml.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog=EPILOG.format(methods=wrapped, datasets=", ".join(DATASETS)), allow_abbrev=False)
    add = parser.add_argument_group("what to run").add_argument
    add("--run_type", default="demo", help="demo, test or full: the preset that the other flags override (default: demo)")
    add("--model", dest="models", nargs="+", metavar="M", help="smollm2-135m, a hub id (owner/name) or a local folder; several allowed")
    add("--method", dest="methods", nargs="+", metavar="M", help="methods of the list below (default: TAQ TAQO TAQoS); several allowed")
    add("--dataset", dest="datasets", nargs="+", metavar="D", help="data sets of the list below (default: all three)")
    add("--avg_bits", nargs="+", type=float, metavar="B", help="stored bits a weight that every common row gets, met from below within --tolerance")
    add("--seeds", nargs="+", type=int, metavar="S", help="seeds of random scores and of the documents that solvers and gradients read; "
        "several give mean and sd (default: 42)")
    add("--plugin", action="append", default=[], metavar="FILE", help="load scorers and methods from a Python file; repeatable")
    add("--dry_run", action="store_true", help="print the cells, what is cached, estimates of time and memory; compute nothing")
    add("--eval_only", action="store_true", help="evaluate stored plans; a cell without one fails instead of being scored")
    add("--list", action="store_true", help="list methods, allocators, quantizers and data sets, then stop")
    _data_flags(parser.add_argument_group("data").add_argument)
    _method_flags(parser.add_argument_group("scores and bits").add_argument)
    _evaluation_flags(parser.add_argument_group("evaluation").add_argument)
    _machine_flags(parser.add_argument_group("machine and folders").add_argument)
    return parser


def _data_flags(add) -> None:
    add("--data_source", choices=("hub", "folder", "embedded"), help="where rows come from (default: embedded for demo, else hub)")
    add("--data_dir", metavar="DIR", help="folder with the data sets in the hub's layout; implies --data_source folder")
    add("--calib_size", type=int, metavar="N", help="documents that calibrate; if the source is short, the ratio to --eval_size is kept and said")
    add("--eval_size", type=int, metavar="N", help="documents that evaluate")
    add("--calib", metavar="C", help="what solvers and gradients calibrate on: task (worked documents), c4, wikitext2, or mix:0.5 (share of task)")
    add("--calib_tokens", type=int, metavar="T", help="tokens that they read, drawn by --seeds (default: 8192; full: 262144, as published)")
    add("--calib_window", type=int, metavar="T", help="tokens of a window of general text (default: 512; full: 2048)")
    add("--split_seed", type=int, metavar="S", help="seed of the stratified split (default: 42)")


def _method_flags(add) -> None:
    add("--score_docs", type=int, metavar="N", help="calibration documents that TAQ and TAQO read (256; test 32)")
    add("--kl_docs", type=int, metavar="N", help="calibration documents that TAQoS reads (64; test 32)")
    add("--oracle_docs", type=int, metavar="N", help="labelled calibration documents that TAQO-oracle reads (32; test 16)")
    add("--oracle_metric", choices=("task", "loglik"), help="what TAQO-oracle measures: the task score, or the smoother gold log-likelihood")
    add("--published", action="store_true", default=None, help="reproduce the published codes' quirks (docs/METHODS.md)")
    add("--quantizer", choices=("gptq", "rtn"), help="quantizer of every common row (default: gptq; demo rtn, to stay within minutes)")
    add("--loss_mask", choices=("all", "answer"), help="tokens whose loss a gradient follows: all (as TaCQ published) or the gold answer's")
    add("--grad_dtype", choices=("fp32", "bf16", "fp16"), help="arithmetic of gradients; 16 bits where float32 does not fit (default: fp32)")
    add("--corrupt", choices=("gptq", "rtn"), help="quantized model that TaCQ compares with (default: gptq, as published)")
    add("--keep_ratio", nargs="+", type=float, metavar="R", help="kept weights of native rows such as TaCQ-native; several from one scoring "
        "(default: 0.0035)")
    add("--levels", nargs="+", type=int, metavar="B", help="bits that a linear may get, of 2 3 4 5 6 8 16 (default: all)")
    add("--group_size", type=int, metavar="G", help="input columns that share a scale (default: largest of 128, 96, 64, 32 that fits)")
    add("--tolerance", type=float, metavar="T", help="how far below --avg_bits a plan may stay (default: 0.01)")


def _evaluation_flags(add) -> None:
    add("--scoring", choices=("auto", "letter", "cloze"), help="how choices are scored; auto: cloze below 1e9 parameters, else letter")
    add("--num_fewshot", type=int, metavar="K", help="examples before each question (default: 5 for open questions, 0 for choices)")
    add("--chat_template", choices=("off", "on"), help="wrap prompts in the model's chat template (default: off; recorded in every result)")
    add("--max_length", type=int, metavar="T", help="tokens of a prompt; longer ones are cut on the left and counted (512; test 256)")
    add("--max_new_tokens", type=int, metavar="T", help="tokens of a generated answer (default: 16)")
    add("--batch_tokens", type=int, metavar="T", help="padded tokens a batch; halved on out-of-memory (default: 4096)")
    add("--batch_size", type=int, metavar="N", help="documents a batch, instead of --batch_tokens")


def _machine_flags(add) -> None:
    add("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--dtype", choices=("auto", "bf16", "fp16", "fp32"), help="arithmetic and weights as loaded (default: bf16 where the hardware has it)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores); part of a result's identity")
    add("--results_dir", metavar="DIR", help="where results are written (default: results)")
    add("--cache_dir", metavar="DIR", help="where scores, plans and samples are kept by content (default: saved_models)")
    add("--hf_token", metavar="TOKEN", help="hub token for gated models; HF_TOKEN in the environment is safer. Never written anywhere")


def _wrap(names: list[str], width: int = 100) -> list[str]:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > width:
            lines.append("")
        lines[-1] += (", " if lines[-1] else "") + name
    return lines


def listing() -> str:
    """What is registered, a line each."""
    from core.registry import ALLOCATORS, DATASETS, METHODS, QUANTIZERS

    lines = ["methods"]
    for name in METHODS:
        spec = METHODS.get(name)
        chain = " -> ".join(p for p in (spec.scorer, spec.allocator, spec.quantizer) if p) if spec.quantizer else "weights as loaded"
        lines.append(f"  {name:20s} {chain:50s} {spec.paper}".rstrip())
    for title, registry in (("allocators", ALLOCATORS), ("quantizers", QUANTIZERS), ("data sets", DATASETS)):
        lines += [title, "  " + ", ".join(registry)]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the grid that the flags describe; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; finished batches are kept, the same command goes on from there", file=sys.stderr)
        return 130


def _main(argv: list[str]) -> int:
    import evaluation.tasks  # noqa: F401  (registers the data sets)
    import methods
    from harness.config import build_grid

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # plugins first: --help and the checks must know their methods
    early.add_argument("--plugin", action="append", default=[])
    for path in early.parse_known_args(argv)[0].plugin:
        methods.load_plugin(path)
    args = vars(build_parser().parse_args(argv))
    if args.pop("list"):
        print(listing())
        return 0
    args.pop("plugin")
    token = args.pop("hf_token") or os.environ.get("HF_TOKEN")
    dry, eval_only = args.pop("dry_run"), args.pop("eval_only")
    lists = {k: tuple(args.pop(k)) for k in ("models", "methods", "datasets", "avg_bits", "seeds", "levels", "keep_ratio") if args.get(k)}
    grid = build_grid(args.pop("run_type"), **args, **lists, eval_only=eval_only or None)
    return run(grid, token, dry)


def run(grid, token: str | None, dry: bool) -> int:
    """Open the models, then dry-run or run, then print the tables of this grid."""
    from rich.console import Console

    from harness.config import cells_of
    from harness.preflight import dry_run, preflight
    from harness.progress import Progress, plain_console
    from harness.render import show
    from harness.run import open_sessions, run_grid
    from harness.tables import tables_of

    errors = Console(stderr=True, highlight=False)
    with Progress(len(cells_of(grid)), errors) as progress:
        sessions = open_sessions(grid, token, progress.say)
        if dry:
            preflight(grid, sessions, progress.say, weights=False)
        else:
            results = run_grid(grid, token, progress, sessions)
    if dry:
        dry_run(grid, sessions, plain_console())
        return 0
    show(tables_of(grid.results_dir, results), plain_console())
    bad = [r for r in results if r["status"] != "ok"]
    for result in bad:
        print(f"failed: {result['method']['name']} on {result['dataset']} ({result['model']['given']}): {result['error']}", file=sys.stderr)
    return 1 if bad else 0
