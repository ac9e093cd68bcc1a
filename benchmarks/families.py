"""The matrix of families in docs/MODELS.md: a tiny random model of every causal-LM family of ``transformers``, run.

    python -m benchmarks.families [--family NAME ...] [--write docs/MODELS.md] [--work DIR]

Each is saved as a folder and goes through a grid of its own: fp16, TaCQ and TAQ, solved by GPTQ, asked TriviaQA (greedy
answers and the gold answers' likelihood).  It works if all three cells have results; it is refused if it was told so in
a sentence; anything else is a crash, and the exit status is 1.  About ten seconds a family on two slow cores.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.tiny_families import FAMILIES, tiny_model
from core.commandline import Parser, exit_status
from core.errors import UserError, one_line
from harness.jobs.launch import run_local
from harness.presets import build_grid
from harness.progress import Progress
from harness.stages.model import LazyModel

METHODS = ("fp16", "TaCQ", "TAQ")
BITS, GROUP = 5.25, 8  # of linears as narrow as 8 columns
WORKS, REFUSED, UNBUILT, CRASHED = "works", "refused", "not built", "crashed"
BEGIN = "<!-- printed by python -m benchmarks.families -->"


@dataclass(frozen=True)
class Row:
    """What became of one family."""

    family: str
    state: str
    why: str = ""
    linears: int = 0
    experts: int = 0  # of the linears
    rest: float = 0.0  # share of the blocks' values that is not quantized
    alone: bool = False  # rows run alone, on all tokens again
    seconds: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        if self.state != WORKS:
            return self.family, self.state, "", "", self.why
        notes = [f"{self.experts} linears are experts'"] * bool(self.experts)
        notes += ["rows run alone"] * self.alone
        return self.family, self.state, str(self.linears), f"{self.rest:.1%}", "; ".join(notes)


def run(family: str, work: Path) -> Row:
    """One family through the grid."""
    started = time.monotonic()
    try:
        module = tiny_model(family)
    except Exception as error:  # a family whose configuration needs parts that no generic table gives
        return Row(family, UNBUILT, one_line(error))
    try:
        folder = work / family
        save(module, folder)
        grid = replace(build_grid("demo", **settings(folder, work)), methods=METHODS)
        results = run_local(grid, None, Progress(1, Console(file=io.StringIO())), [])
        wrong = [result.error for result in results if not result.ok]
        state = WORKS if not wrong else CRASHED if any(re.match(r"\w+(Error|Exception|Exit): ", text) for text in wrong
                                                       ) else REFUSED
        facts = about(folder, work) if state == WORKS else {"why": one_line(wrong[0])}
    except UserError as error:
        state, facts = REFUSED, {"why": str(error).replace(str(folder), family)}
    except Exception as error:
        state, facts = CRASHED, {"why": f"{type(error).__name__}: {one_line(error)}"}
    return Row(family, state, seconds=time.monotonic() - started, **facts)


def save(module: torch.nn.Module, folder: Path) -> None:
    """The model and the tests' byte tokenizer as a plain folder."""
    from tests.tiny import byte_tokenizer

    module.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def settings(folder: Path, work: Path) -> dict:
    """Of the grid: few short documents, and bits that such narrow linears can have."""
    return dict(models=(str(folder),), datasets=("trivia_qa",), methods=METHODS[1:], avg_bits=(BITS,), tolerance=0.9,
                group_size=GROUP, quantizer="gptq", num_fewshot=0, calib_size=4, eval_size=2, calib_tokens=128,
                max_length=200, max_new_tokens=3, cache_dir=str(work / "cache" / folder.name), device="cpu",
                results_dir=str(work / "results" / folder.name))


def about(folder: Path, work: Path) -> dict:
    """What of the model was quantized, and how it is asked."""
    from core.architecture import expert_of

    model = LazyModel(str(folder), work / "base", device="cpu", dtype="fp32", threads=1, say=lambda text: None)
    return {"linears": len(model.shapes), "experts": sum(expert_of(fqn) is not None for fqn in model.shapes),
            "rest": model.rest[0], "alone": model.module.rows_alone}


def table(rows: list[Row]) -> str:
    """Markdown."""
    count = {state: sum(row.state == state for row in rows) for state in (WORKS, REFUSED, UNBUILT, CRASHED)}
    heads = ("family", "", "linears", "rest of the blocks", "")
    lines = [heads, ("---",) * len(heads), *(row.cells() for row in sorted(rows, key=lambda row: row.family))]
    return "\n".join([", ".join(f"{n} {state}" for state, n in count.items()) + f" of {len(rows)} families", "",
                      *("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)])


def main(argv: list[str] | None = None) -> int:
    """Run the families, print the table; returns the exit status."""
    import transformers

    parser = Parser(prog="python -m benchmarks.families", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=FAMILIES, metavar="NAME", help="default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this file, after its mark")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep models and results there (default: nowhere)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.family if name not in FAMILIES]
    if unknown:
        raise UserError(f"--family {unknown[0]!r} is no causal-LM family of transformers {transformers.__version__}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for number, family in enumerate(args.family, 1):
            rows.append(row := run(family, args.work or Path(scratch)))
            print(f"[{number}/{len(args.family)}] {family}: {row.state} {row.why} ({row.seconds:.0f} s)",
                  file=sys.stderr, flush=True)
    text = f"transformers {transformers.__version__}, torch {torch.__version__}: {table(rows)}\n"
    print(text)
    if args.write:
        head = args.write.read_text().partition(BEGIN)[0]
        args.write.write_text(f"{head}{BEGIN}\n\n{text}")
    return int(any(row.state == CRASHED for row in rows))


if __name__ == "__main__":
    sys.exit(exit_status(main))
