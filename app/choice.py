"""What the live page asks for: a row of the harness, its command, and the results that it makes."""

import os
from dataclasses import dataclass
from functools import cache, cached_property

from app.jobs import Job
from core.digest import digest
from core.errors import UserError
from core.registry import CONTROLS, DATASETS, METHODS, MethodSpec
from report.measured import asked_of
from report.records import Result

RUN_TYPE = "demo"
BITS = tuple(f"{2 + i / 4:g}" for i in range(25))
KEPT = tuple(f"{i / 10:g}" for i in range(1, 21))  # percent
SIZES = ("8", "16", "32", "64", "128", "256", "512", "1024", "2048")  # of documents; open questions show five examples
OWN = ("trivia_qa", "mmlu_pro", "code_mmlu")  # data sets with embedded rows


@dataclass(frozen=True)
class Choice:
    """One row, and how much of it."""

    model: str
    dataset: str
    method: str
    avg_bits: float
    kept: float | None  # percent of the weights; only of methods that read it
    calib_size: int
    eval_size: int
    quantizer: str = "rtn"
    data_dir: str | None = None

    @property
    def ratio(self) -> str | None:
        """The share of kept weights as flags and brackets have it."""
        return None if self.kept is None else f"{self.kept / 100:g}"

    def job(self, results_dir: str, cache_dir: str) -> Job:
        """The harness's own command for it."""
        if self.model.startswith("-"):
            raise UserError(f"model {self.model!r} starts with a dash; give an alias, a hub id or a folder")
        words = ["run_taq_icml.py", "--run_type", RUN_TYPE, "--model", self.model, "--dataset", self.dataset,
                 "--method", self.method, "--avg_bits", f"{self.avg_bits:g}", "--quantizer", self.quantizer,
                 "--calib_size", str(self.calib_size), "--eval_size", str(self.eval_size)]
        if self.ratio:
            words += ["--keep_ratio", self.ratio]
        return Job(results_dir, (*words, *places(results_dir, cache_dir, self.data_dir)))

    @cached_property
    def grid(self):
        """The grid of that command; UserError for what cannot be."""
        from harness.presets import build_grid

        ratio = {"keep_ratio": (float(self.ratio),)} if self.ratio else {}
        return build_grid(RUN_TYPE, models=(self.model,), datasets=(self.dataset,), methods=(self.method,),
                          avg_bits=(self.avg_bits,), quantizer=self.quantizer, calib_size=self.calib_size,
                          eval_size=self.eval_size, data_dir=self.data_dir, **ratio)

    @cached_property
    def cells(self) -> list[tuple]:
        """Name, budget and seed of every cell that the command makes."""
        from harness.grid import cells_of

        return [(cell.method.name, cell.avg_bits, cell.seed) for cell in cells_of(self.grid)]

    @property
    def row(self) -> str:
        """The name of the row that is asked for, as results have it."""
        return next(name for name, _, _ in self.cells if name not in CONTROLS)

    def results(self, every: list[Result]) -> list[Result]:
        """The finished cells of exactly its grid, the newest first."""
        from harness.grid import table_settings

        settings = digest(table_settings(self.grid))
        cells = [r for r in every if r.ok and r.model.given == self.model and r.dataset == self.dataset
                 and (r.name, r.avg_bits, r.seed) in self.cells and r.run_type == RUN_TYPE
                 and digest(r.settings) == settings]
        return sorted(cells, key=lambda r: r.age, reverse=True)

    def result(self, every: list[Result]) -> Result | None:
        """The newest result of its row."""
        return next((r for r in self.results(every) if r.name == self.row), None)

    @property
    def asked(self) -> dict:
        """The same as what scripts/ask.py is asked for."""
        method = f"{self.method}[ratio={self.ratio}]" if self.ratio else self.method
        return {"model": self.model, "dataset": self.dataset, "avg_bits": self.avg_bits, "method": method,
                "calib_size": self.calib_size, "eval_size": self.eval_size, "quantizer": self.quantizer,
                "data_dir": self.data_dir}


def model_of(given: str) -> str:
    """A model as it was named; a folder by its whole path, since the harness may run in another folder."""
    return os.path.abspath(given) if os.path.isdir(given) else given.strip()


def places(results_dir: str, cache_dir: str, data_dir: str | None) -> list[str]:
    """The flags of the folders."""
    return ["--results_dir", results_dir, "--cache_dir", cache_dir, *(["--data_dir", data_dir] if data_dir else [])]


def script(module: str, asked: dict, results_dir: str, cache_dir: str) -> tuple[str, ...]:
    """The words of a script that is asked for a record (report/measured.py); the data folder is part of what is asked.
    """
    flags = [f"--{name}={value:g}" if isinstance(value, float) else f"--{name}={value}"
             for name, value in asked_of(asked).items()]
    return ("-m", module, *flags, *places(results_dir, cache_dir, None))


@cache
def methods() -> dict[str, MethodSpec]:
    """Every row that can be chosen, by name, the paper's own first."""
    import harness.presets  # noqa: F401  it registers every method

    own = sorted(METHODS, key=lambda name: (not name.startswith("TaCQ"), name.lower()))
    return {name: METHODS.get(name) for name in own if name not in CONTROLS}


def reads_kept(method: str) -> bool:
    """Whether the share of kept weights is this row's own choice."""
    return methods()[method].options.get("ratio") == "ratio"


def tasks(data_dir: str | None) -> tuple[str, ...]:
    """Data sets that can be asked: those with embedded rows, or all that a data folder may hold."""
    import harness.presets  # noqa: F401  it registers every data set

    return OWN if not data_dir else (*OWN, *(name for name in DATASETS if name not in (*OWN, "file", "lm_eval")))
