"""One cell with all that its stages need."""

from contextlib import contextmanager

from core.errors import UserError
from core.forward import is_out_of_memory
from harness.stages.model import Session


class Missing(UserError):
    """A stage is not in the store and --eval_only forbids computing it."""


def refuse_if_eval_only(session: Session, stage: str, key: str) -> None:
    if session.grid.eval_only:
        raise Missing(f"--eval_only: the {stage} of this cell ({key}) is not in {session.store.root}; run once without --eval_only")


@contextmanager
def solver_memory(session: Session, what: str):
    """Out of memory outside the evaluation is the user's to mend: smaller batches of questions would not help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory on {session.device} while {what}; lower --calib_tokens or --calib_window, or use --device cpu"
                        " or --grad_dtype bf16") from None
