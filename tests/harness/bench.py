"""One process's view of a grid's cells, for tests of the stages."""

import io

from rich.console import Console

from core.method_names import without_settings
from core.transforms import OF_EVERY_ROW
from harness.presets import build_grid
from harness.progress import Progress
from harness.stages.case import Case, Cases, open_cases


def silent() -> Progress:
    """Progress that nobody sees."""
    return Progress(1, Console(file=io.StringIO()))


def cases_of(**grid) -> Cases:
    """The cells of a grid of the demo's run type, rounded unless it says otherwise, as a process that has just started
    sees them.
    """
    return open_cases(build_grid(grid.pop("run_type", "demo"), **{"quantizer": "rtn"} | grid), None, silent())


def case_of(name: str, dataset: str = "mmlu_pro", **grid) -> Case:
    """The first cell of a method on a data set, whatever the bits of its activations and its transform."""
    return next(c for c in cases_of(**grid) if c.cell.dataset == dataset
                and without_settings(c.method.name, OF_EVERY_ROW).partition("@")[0] == name)
