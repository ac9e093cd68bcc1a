"""What the live page asks for: a row of the harness, its command, and the results that it makes."""

from dataclasses import dataclass
from functools import cache

from app.jobs import Job
from core.errors import UserError
from core.registry import DATASETS, METHODS, MethodSpec
from report.records import Result

BITS = tuple(2 + i / 4 for i in range(25))
KEPT = tuple(round(0.1 * i, 1) for i in range(1, 21))  # percent
BESIDE = ("fp16", "uniform", "random")  # rows that every grid has


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

    def job(self, results_dir: str, cache_dir: str, data_dir: str | None) -> Job:
        """The harness's own command for it."""
        if self.model.startswith("-"):
            raise UserError(f"model {self.model!r} starts with a dash; give an alias, a hub id or a folder")
        words = ["run_taq_icml.py", "--run_type", "demo", "--model", self.model, "--dataset", self.dataset, "--method",
                 self.method, "--avg_bits", f"{self.avg_bits:g}", "--quantizer", self.quantizer, "--calib_size",
                 str(self.calib_size), "--eval_size", str(self.eval_size)]
        if self.kept is not None and reads_kept(self.method):
            words += ["--keep_ratio", f"{self.kept / 100:g}"]
        return Job(results_dir, (*words, *places(results_dir, cache_dir, data_dir)))

    @property
    def asked(self) -> dict:
        """The same as what scripts/ask.py and scripts/linear.py are asked for."""
        return {"model": self.model, "dataset": self.dataset, "avg_bits": self.avg_bits, "calib_size": self.calib_size,
                "eval_size": self.eval_size, "quantizer": self.quantizer}

    def results(self, every: list[Result]) -> list[Result]:
        """The finished cells that its command makes, the newest first."""
        wanted = {"calib_size": self.calib_size, "eval_size": self.eval_size, "quantizer": self.quantizer}
        ratio = [self.kept / 100] if self.kept is not None and reads_kept(self.method) else None
        cells = [r for r in every if r.ok and r.model.given == self.model and r.dataset == self.dataset
                 and r.avg_bits in (None, self.avg_bits) and r.name in (self.method, *BESIDE)
                 and all(r.settings.get(name) == value for name, value in wanted.items())]
        if ratio:
            cells = [r for r in cells if r.name != self.method
                     or abs(r.method.options.get("ratio", ratio[0]) - ratio[0]) < 1e-9]
        return sorted(cells, key=lambda r: r.age, reverse=True)

    def result(self, every: list[Result], name: str) -> Result | None:
        """The newest of them of that name."""
        return next((r for r in self.results(every) if r.name == name), None)


def places(results_dir: str, cache_dir: str, data_dir: str | None) -> list[str]:
    """The flags of the folders."""
    return ["--results_dir", results_dir, "--cache_dir", cache_dir, *(["--data_dir", data_dir] if data_dir else [])]


@cache
def methods() -> dict[str, MethodSpec]:
    """Every row that can be chosen, by name, the paper's own first."""
    import harness.presets  # noqa: F401  it registers every method

    own = sorted(METHODS, key=lambda name: (not name.startswith("TaCQ"), name.lower()))
    return {name: METHODS.get(name) for name in own if name not in BESIDE}


def reads_kept(method: str) -> bool:
    """Whether the share of kept weights is this row's own choice."""
    return "ratio" in methods()[method].options


def tasks(data_dir: str | None) -> list[str]:
    """Data sets that can be asked: those with embedded rows, or all of a data folder's."""
    import harness.presets  # noqa: F401  it registers every data set

    named = ("trivia_qa", "mmlu_pro", "code_mmlu")
    if not data_dir:
        return list(named)
    return [*named, *(name for name in DATASETS if name not in (*named, "file", "lm_eval"))]
