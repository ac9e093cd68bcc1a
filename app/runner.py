"""Runs one command of the app's and keeps its log: ``python -m app.runner FOLDER``, started by app/jobs.py.

It is the process that computes: it takes the folder's lease, sends what is printed to the log and runs the script
itself, so whoever kills it leaves nothing behind.  A second one on the same folder finds the lease taken and ends at
once: two pages that start the same command at the same moment start one process.
"""

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

from core.digest import write_json
from core.locks import take

TRIES = 5


def main(folder: Path) -> int:
    """Run the command of ``command.json``; returns its exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    lease = _lease(folder / "lease")
    if lease is None:
        return 0
    code = 1
    try:
        words = json.loads((folder / "command.json").read_text(encoding="utf-8"))["words"]
        (folder / "process").write_text(str(os.getpid()))
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for number in (1, 2):
            os.dup2(log, number)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
        code = run(words)
    finally:
        (folder / "process").unlink(missing_ok=True)
        write_json(folder / "end.json", {"code": code, "ended": time.time()})
        lease.release()
    return code


def _lease(path: Path):
    """The lease, or None if another runner has it; who only looks whether it is held may have it for a moment."""
    for _ in range(TRIES):
        if (lease := take(path)) is not None:
            return lease
        time.sleep(0.1)
    return None


def run(words: list[str]) -> int:
    """A script, or ``-m`` and a module, as ``python`` runs it; returns its exit status."""
    module = words[0] == "-m"
    sys.argv = list(words[1:] if module else words)
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
