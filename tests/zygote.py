"""Starts commands of the project at a fork's price: imports once, then forks a child for every line on its input.

    ["--model", ...]   ->   the child's process number, and later "<number> <exit status>"  (137: killed)

A child that is killed by SIGKILL dies as any process would; only the seconds of importing are saved.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers.models.llama.modeling_llama  # noqa: F401  (what a tiny model's loading would import)

import harness.cli
import harness.launch
import harness.tables


def reap(block: bool) -> None:
    """Report children that have ended."""
    while True:
        try:
            number, status = os.waitpid(-1, 0 if block else os.WNOHANG)
        except ChildProcessError:
            return
        if not number:
            return
        print(number, os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status), flush=True)
        if block:
            return


def main() -> None:
    signal.signal(signal.SIGCHLD, lambda *_: reap(False))
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sink = os.open(json.loads(line)["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            code = 1
            try:
                code = harness.cli.main(json.loads(line)["argv"])
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(child, "started", flush=True)


if __name__ == "__main__":
    main()
