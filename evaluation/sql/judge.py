"""Whether two queries give the same rows of a database: asked of a process that may be killed (worker.py).

One process serves all documents.  It is started when it is first needed, again after a query that it did not
survive, and it ends with this process, after a minute without a question, or when its stdin closes.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from evaluation.sql.text import is_ordered

WORKER = Path(__file__).with_name("worker.py")
SECONDS = 5.0  # a query may take
ROWS = 10_000  # a query may give
STARTING = 30.0  # seconds that a process may take to start on a busy machine


@dataclass(frozen=True)
class Verdict:
    """What came of a gold query and an answer; an error is a few words, None where there was none."""

    same: bool
    gold_error: str | None = None
    answer_error: str | None = None


class Judge:
    """The process and the questions to it; threads take turns, and a forked process starts one of its own."""

    def __init__(self):
        self._lock = threading.Lock()
        self.process: subprocess.Popen | None = None
        self._owner = 0  # the process that started it

    def compare(self, database: Path, gold: str, answer: str, seconds: float = SECONDS) -> Verdict:
        """Run both queries; the order of rows counts if the gold query states one."""
        line = json.dumps({"database": str(database.resolve()), "gold": gold, "answer": answer, "seconds": seconds,
                           "rows": ROWS, "ordered": is_ordered(gold)}).encode() + b"\n"
        with self._lock:
            for _ in range(2):  # a process without work may end just as it is asked
                asked = time.monotonic()
                reply = self._ask(line, 3 * seconds + STARTING)
                if reply:
                    return Verdict(**json.loads(reply))
                if time.monotonic() - asked >= seconds:
                    break
        return Verdict(False, answer_error=f"it takes longer than {seconds:g} s, or more memory than there is")

    def _ask(self, line: bytes, patience: float) -> bytes:
        """One line to the process and its reply; nothing if it is gone."""
        if self._owner != os.getpid() or self.process is None or self.process.poll() is not None:
            self._start()
        process = self.process
        try:
            process.stdin.write(line)
            process.stdin.flush()
            reply = process.stdout.readline() if select.select([process.stdout], [], [], patience)[0] else b""
        except BrokenPipeError:
            reply = b""
        except BaseException:  # Ctrl-C: the reply that is still to come must not meet the next question
            self.end()
            raise
        if not reply.endswith(b"\n"):
            self.end()
            return b""
        return reply

    def _start(self) -> None:
        # isolated and without site-packages: a file that lies about or a variable of the user's changes nothing
        self.process = subprocess.Popen([sys.executable, "-I", "-S", str(WORKER)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._owner = os.getpid()

    def end(self) -> None:
        """End the process now, if there is one."""
        if self.process is not None and self._owner == os.getpid():
            self.process.kill()
            self.process.communicate()  # reaps it and closes the pipes
        self.process = None


JUDGE = Judge()  # this process's
atexit.register(JUDGE.end)
