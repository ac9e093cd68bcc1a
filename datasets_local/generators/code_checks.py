"""Proves the answers of the code set by running them: the right candidate passes its checks and every wrong one fails.

The code is our own fact files, so this guards against mistakes, not against malice: a step limit ends an endless loop,
and nothing that the files contain touches the disk or the network.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from types import FrameType
from typing import Any

from .code_blocks import Block
from .common import DataError

STEP_LIMIT = 20_000  # lines of Python; the longest right answer takes a few hundred


class StepLimitError(RuntimeError):
    """The code under check ran too long."""


class _StepLimit:
    """A trace function that ends the code after STEP_LIMIT lines; unlike an alarm it works in any thread and on any
    system.
    """

    def __init__(self) -> None:
        self._left = STEP_LIMIT

    def __call__(self, _frame: FrameType, event: str, _arg: object) -> _StepLimit:
        if event == "line":
            self._left -= 1
            if self._left < 0:
                raise StepLimitError(f"more than {STEP_LIMIT} lines run")
        return self


@contextlib.contextmanager
def _limited():
    """Run the body under the step limit and give a debugger or coverage tool its own trace function back afterwards."""
    before = sys.gettrace()
    sys.settrace(_StepLimit())
    try:
        yield
    finally:
        sys.settrace(before)


def _execute(block: Block, candidate: str) -> dict[str, Any]:
    """Run hidden code and program; the namespace then also holds `result`, `printed`, `error` and `candidate` for the
    checks.
    """
    space: dict[str, Any] = {"candidate": candidate}
    output = io.StringIO()
    with contextlib.redirect_stdout(output), warnings.catch_warnings(), _limited():
        warnings.simplefilter("ignore")  # some wrong candidates provoke a SyntaxWarning such as "int is not callable"
        exec("\n".join(block.hidden), space)  # running our own fact files is what this module is for
        program = block.program(candidate)
        try:
            if block.subset == "api_frameworks":
                space["result"] = eval(program, space)
            else:
                exec(program, space)
        except StepLimitError:
            raise
        except Exception as error:  # what a wrong candidate raises is a failed check, and one question asks for it
            space["error"] = error
    space["printed"] = output.getvalue().rstrip("\n")
    return space


def passes(block: Block, candidate: str) -> bool:
    """True if the candidate's program satisfies all checks of the block."""
    space = _execute(block, candidate)
    if "error" in space and "expected" not in space:
        return False
    if "error" in space and type(space["error"]) is not space["expected"]:
        return False
    if block.subset == "execution_prediction":
        return space["printed"] == candidate
    try:
        with contextlib.redirect_stdout(io.StringIO()), _limited():
            return all(bool(eval(check, space)) for check in block.checks)
    except StepLimitError:
        raise
    except Exception:  # a check that cannot be computed, such as a call of what is not defined, has failed
        return False


def verify(block: Block) -> None:
    """Raise DataError unless exactly the right candidate passes, and, for a repair, unless the shown code is really
    wrong.
    """
    if not passes(block, block.gold):
        raise DataError(f"{block.subset}: the right answer fails its check: {block.gold!r} in "
                        f"{block.title or block.shown!r}")
    for wrong in block.distractors:
        if passes(block, wrong):
            raise DataError(f"{block.subset}: a wrong answer passes the check: {wrong!r} in "
                            f"{block.title or block.shown!r}")
    if block.subset == "code_repair" and passes(block, block.shown[block.wrong_line or 0].strip()):
        raise DataError(f"{block.subset}: the code to be repaired is right already: {block.shown!r}")
