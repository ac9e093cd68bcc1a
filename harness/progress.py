"""Progress with remaining time on a terminal; one line a finished cell elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from core.commandline import plain_console

__all__ = ["Progress", "clock", "plain_console"]


class Progress:
    """Two bars: the grid's cells, and the stage in hand."""

    def __init__(self, cells: int, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self.watchers: list[Callable[[str, int, int], None]] = []  # who else wants to know (harness/jobs/board.py)
        self.cells, self.done, self.start = cells, 0, time.monotonic()
        self.bars = RichProgress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                                 TextColumn("left"), TimeRemainingColumn(), console=self.console, transient=True,
                                 disable=not self.console.is_terminal)
        self.grid_bar = self.bars.add_task("cells", total=cells)
        self.stage_bar = self.bars.add_task("", total=None, visible=False)

    def __enter__(self):
        self.bars.__enter__()
        return self

    def __exit__(self, *exc):
        self.bars.__exit__(*exc)

    def update(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of a stage are finished."""
        for watcher in self.watchers:
            watcher(what, done, total)
        task = self.bars.tasks[self.stage_bar]
        if task.description != what:
            self.bars.reset(self.stage_bar, description=what, total=total, visible=True)
        self.bars.update(self.stage_bar, completed=done, total=total, visible=done < total)

    def stage(self, what: str):
        """Return ``step(done, total)`` for a stage called ``what``."""
        return lambda done, total: self.update(what, done, total)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.bars.console.print(text, markup=False, soft_wrap=True)

    def cell_done(self, text: str) -> None:
        """Count a cell; off a terminal, print it with the time that is left."""
        self.done += 1
        self.bars.update(self.grid_bar, completed=self.done)
        self.bars.update(self.stage_bar, visible=False)
        spent = time.monotonic() - self.start
        left = spent / self.done * (self.cells - self.done)
        last = self.done >= self.cells
        tail = f"  [{clock(spent)} in all]" if last else f"  [{self.done}/{self.cells}, {clock(spent)} so far, about {clock(left)} left]"
        self.say(text + tail)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, sec = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{sec:02d}" if hours else f"{minutes}:{sec:02d}"
