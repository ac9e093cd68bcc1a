"""Commands of the harness that the app starts: processes of their own, which outlive the page and the app.

``<results>/.app/<key>/command.json``  what was asked: the command, when, and its key is the command's digest
``<results>/.app/<key>/log``           what it printed
``<results>/.app/<key>/lease``         held as long as it runs (core/locks.py); one command never runs twice at a time
``<results>/.app/<key>/process``       its number
``<results>/.app/<key>/end.json``      how it ended
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.digest import digest, write_json
from core.errors import UserError, storage_error
from core.locks import held
from harness.jobs.executors import environment

FOLDER = ".app"
REPO = Path(__file__).resolve().parents[1]
RUNNING, DONE, FAILED, STOPPED, NONE = "running", "done", "failed", "stopped", "none"
INTERRUPTED = 130  # exit status after Ctrl-C
START_S = 20.0  # a process that was started must have its lease by then
started: list[subprocess.Popen] = []  # by this process: one that ended would seem to live until it is asked after


@dataclass(frozen=True)
class Job:
    """One command on one results folder; the words behind ``python``."""

    results_dir: str
    words: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return Path(self.results_dir).absolute() / FOLDER / digest(list(self.words))

    @property
    def command(self) -> str:
        """The command as a person types it in the folder in which the app was started."""
        return "python " + " ".join(quoted(short(word)) for word in self.words)

    def start(self) -> None:
        """Start the command, unless it runs; returns at once."""
        if self.state() == RUNNING:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "end.json").unlink(missing_ok=True)
            write_json(self.folder / "command.json", {"words": list(self.words), "started": time.time()})
        except OSError as error:
            raise storage_error(error, self.folder) or UserError(
                f"{str(self.folder)!r} cannot be written ({error.strerror}); choose another results folder") from None
        # a session of its own: neither the app's end nor Ctrl-C in its terminal reaches the process
        started.append(subprocess.Popen([sys.executable, "-m", "app.runner", str(self.folder)], cwd=REPO,
                                        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, env=os.environ | environment()))

    def state(self) -> str:
        """Where it stands; "stopped" is also a process that was killed."""
        told = _read(self.folder / "command.json")
        if told is None:
            return NONE
        started[:] = [process for process in started if process.poll() is None]
        if held(self.folder / "lease"):
            return RUNNING
        end = _read(self.folder / "end.json")
        if end is None:
            begun = told.get("started")
            return RUNNING if isinstance(begun, float) and time.time() - begun < START_S else STOPPED
        return {0: DONE, INTERRUPTED: STOPPED}.get(end.get("code"), FAILED)

    def process(self) -> int | None:
        """The number of the harness's process, as long as it runs."""
        try:
            return int((self.folder / "process").read_text())
        except (OSError, ValueError):
            return None

    def cancel(self) -> None:
        """Ctrl-C to the harness, which ends in good order: what it finished stays."""
        if held(self.folder / "lease") and (number := self.process()):
            try:
                os.kill(number, signal.SIGINT)
            except ProcessLookupError:  # it has just ended
                return

    def log(self, lines: int | None = None) -> str:
        """What it printed, or the last lines of it."""
        try:
            text = (self.folder / "log").read_bytes().decode("utf-8", "replace")
        except OSError:
            return ""
        rows = [row.rstrip().rpartition("\r")[2] for row in text.rstrip().split("\n")]  # a bar's last state
        return "\n".join(rows if lines is None else rows[-lines:])

    def why(self) -> str:
        """The sentence with which it failed."""
        rows = [row for row in self.log().splitlines() if row.strip()]
        errors = [row for row in rows if row.startswith(("error:", "failed:"))]
        return (errors or rows or ["it ended without a word"])[-1].removeprefix("error: ")


def _read(path: Path) -> dict | None:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plain if isinstance(plain, dict) else None


def short(path: str) -> str:
    """A path below the folder in which the app was started without that folder."""
    return path.removeprefix(os.getcwd() + os.sep)


def quoted(word: str) -> str:
    """A word as a shell reads it, in double quotes where it needs any: they also serve cmd.exe."""
    if word and all(c.isalnum() or c in "-_./:=,+@%" for c in word):
        return word
    return '"' + "".join(f"\\{c}" if c in '"\\$`' else c for c in word) + '"'


def recent(results_dir: str, first: Sequence[str]) -> list[Job]:
    """Jobs of a results folder whose command begins with these words, the newest first."""
    found = []
    for path in (Path(results_dir).absolute() / FOLDER).glob("*/command.json"):
        told = _read(path) or {}
        words, begun = told.get("words"), told.get("started")
        if isinstance(words, list) and words[:len(first)] == [*first] and isinstance(begun, float):
            found.append((begun, Job(results_dir, tuple(map(str, words)))))
    return [job for _, job in sorted(found, key=lambda pair: pair[0], reverse=True)]
