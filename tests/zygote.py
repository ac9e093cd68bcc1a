"""Starts commands of the project at a fork's price: imports once, then forks a child for every line on its input.

    {"argv": ["--model", ...], "log": file}   ->   "<process number> started", and later "<number> <exit status>"

137 is the exit status of a killed one.

A child that is killed by SIGKILL dies as any process would; only the seconds of importing are saved.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers.models.llama.modeling_llama  # noqa: F401  (what a tiny model's loading would import)

import harness.cli.main
import harness.jobs.launch


def tell(number: int, word: object) -> None:
    """One line, by one system call: the handler may come while the loop is telling something itself."""
    os.write(1, f"{number} {word}\n".encode())


def reap(*_) -> None:
    """Report children that have ended; the handler of SIGCHLD, one of which may stand for several."""
    while True:
        try:
            number, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not number:
            return
        tell(number, os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def run(argv: list[str], log: str) -> None:
    """Be the child: the command, with its words in its log, and no way back."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        code = harness.cli.main.main(argv)
    except BaseException:  # whatever it is, the parent must not go on twice, and the log must say why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    signal.signal(signal.SIGCHLD, reap)
    tell(os.getpid(), "ready")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(**json.loads(line))
        tell(child, "started")


if __name__ == "__main__":
    main()
