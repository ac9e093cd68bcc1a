"""What is calibrated on, as it is asked for: the settings of everything that reads prompts, gradients or inputs of
linears.

evaluation/calibration/ draws the documents, streams/ reads them; this says only what can be asked.
"""

from __future__ import annotations

from typing import NamedTuple

from core.errors import UserError, did_you_mean
from core.settings import SETTINGS, Setting

KINDS = ("task", "c4", "wikitext2", "mix", "auto")
GENERAL = ("c4", "wikitext2")  # texts without answers
AND = "+"  # between data sets that calibrate together
OWN = "file:"  # before the path of a text of the user's own


def is_general(kind: str) -> bool:
    """Whether it is a text without answers."""
    return kind in GENERAL or kind.startswith(OWN)


def names_in(text: str) -> list[str]:
    """The data sets of a text that joins them by "+"; a file of one's own may have that in its path."""
    return [text] if text.startswith(OWN) else text.split(AND)


class CalibChoice(NamedTuple):
    """Where the tokens come from."""

    kind: str  # one of KINDS, or file:PATH
    share: float  # of the token budget that the task's own documents get, 0..1

    def own(self, tokens: int) -> int:
        """How many of so many tokens are the task's own."""
        return round(self.share * tokens)

    @property
    def text(self) -> str | None:
        """The general text that has to be loaded, if any."""
        return {"task": None, "auto": "c4", "mix": "c4"}.get(self.kind, self.kind)


def parse_calib(text: str) -> CalibChoice:
    """Read "task", "c4", "wikitext2", "mix:0.5", "auto" or "file:PATH"; UserError for anything else."""
    if text.startswith(OWN) and text != OWN:
        return CalibChoice(text, 0.0)
    kind, colon, number = text.partition(":")
    if kind not in KINDS:
        raise UserError(f"unknown --calib {text!r}{did_you_mean(kind, KINDS)}; use task, c4, wikitext2, file:PATH, "
                        "mix:0.5 or auto")
    if kind != "mix":
        if colon:
            raise UserError(f"--calib {text!r} has a share, which only a mix has; write {kind} or mix:0.5")
        return CalibChoice(kind, 1.0 if kind in ("task", "auto") else 0.0)
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:  # NaN too
        raise UserError(f"--calib {text!r} has no share of the task above 0 and below 1; write for example mix:0.5")
    return CalibChoice("mix", share)


CALIB = Setting("calib", str, "task",
                "what solvers and gradients calibrate on: task (worked documents), c4, wikitext2, "
                "file:PATH (a file of text), mix:0.5 (share of task), or auto (the share by the alignment of "
                "gradients)", check=parse_calib)
CALIB_DATASET = Setting("calib_dataset", str, None,
                        "data set whose documents calibrate, whatever is asked, or several joined by +, each with an "
                        "equal share of the tokens; default: the data set that is asked, and of a demo that names none "
                        "its three together")
CALIB_TOKENS = Setting("calib_tokens", int, 8192, "tokens that they read, drawn by --seeds; 262144 as published", low=2)
CALIB_WINDOW = Setting("calib_window", int, 512, "tokens of a window of general text; 2048 as published", low=2)
LOSS_MASK = Setting("loss_mask", str, "all",
                    "tokens whose loss a gradient follows: all (as TaCQ published) or the gold "
                    "answer's", choices=("all", "answer"))
GRAD_DTYPE = Setting("grad_dtype", str, "fp32", "arithmetic of gradients; 16 bits where float32 does not fit",
                     choices=("fp32", "bf16", "fp16"))
SCORE_PROMPTS = Setting("score_prompts", str, "published", "prompts that scorers without labels read: published (the "
                        "question with its options, no examples) or asked (as the evaluation puts it to the model)",
                        choices=("published", "asked"))
READ_BY = {  # need of a scorer or quantizer -> the settings that it implies
    "calib": (CALIB, CALIB_DATASET, CALIB_TOKENS, CALIB_WINDOW, SCORE_PROMPTS),
    "outputs": (),  # the prompts' own
    "labels": (CALIB_DATASET,),
    "answers": (CALIB, CALIB_DATASET, CALIB_TOKENS, CALIB_WINDOW),
    "hessian": (CALIB, CALIB_DATASET, CALIB_TOKENS, CALIB_WINDOW),
    "inputs": (CALIB, CALIB_DATASET, CALIB_TOKENS, CALIB_WINDOW),
    "gradients": (CALIB, CALIB_DATASET, CALIB_TOKENS, CALIB_WINDOW, LOSS_MASK, GRAD_DTYPE),
    "fisher": (CALIB, CALIB_DATASET, CALIB_TOKENS, CALIB_WINDOW, LOSS_MASK, GRAD_DTYPE),
    "library": (CALIB, CALIB_DATASET, CALIB_TOKENS, CALIB_WINDOW, LOSS_MASK, GRAD_DTYPE),
}
SETTINGS.declare((CALIB, CALIB_DATASET, CALIB_TOKENS, CALIB_WINDOW, SCORE_PROMPTS, LOSS_MASK, GRAD_DTYPE), "core")
