"""Runs one command of the app's and keeps its log: ``python -m app.runner FOLDER``, started by app/jobs.py.

It holds the folder's lease as long as the command runs.  A second one on the same folder finds the lease taken and
ends at once, so two pages that start the same command at the same moment start one process.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from core.digest import write_json
from core.locks import take
from harness.jobs.executors import environment


def main(folder: Path) -> int:
    """Run the command of ``command.json``; returns its exit status."""
    lease = take(folder / "lease")
    if lease is None:
        return 0
    try:
        words, code = json.loads((folder / "command.json").read_text(encoding="utf-8"))["words"], -1
        try:
            with open(folder / "log", "w", encoding="utf-8") as log:
                process = subprocess.Popen([sys.executable, "-u", *words], stdin=subprocess.DEVNULL, stdout=log,
                                           stderr=subprocess.STDOUT, env=os.environ | environment())
                (folder / "process").write_text(str(process.pid))
                for name in (signal.SIGINT, signal.SIGTERM):  # whoever stops this process means the command
                    signal.signal(name, lambda *_: process.send_signal(signal.SIGINT))
                code = process.wait()
        finally:
            write_json(folder / "end.json", {"code": code, "ended": time.time()})
            (folder / "process").unlink(missing_ok=True)
    finally:
        lease.release()
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
