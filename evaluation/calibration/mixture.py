"""The token sequences on which solvers build Hessians and gradients, drawn by a seed under a token budget.

    task        worked documents: prompt + " " + gold answer, shuffled, taken until the next would pass the budget
    c4          a random document of at least ``window`` tokens, one random window of it; ⌊budget / window⌋ times
    wikitext2   documents joined by a blank line, tokenised once; ⌊budget / window⌋ random windows; file:PATH likewise
    mix:p       the first round(p · budget) tokens' worth from the task, the rest from c4

TaCQ (arXiv 2504.07389) and the GPTQ loaders it uses: budget 128 · 2048 = 262,144 tokens, window 2048; task
documents are neither padded nor joined; every token counts in the loss.  A larger budget with the same seed
contains the smaller one.

Deviations: numpy's generator, so the published draws are not reproduced; task documents longer than
``max_length`` are cut on the left and counted (published: whole); when a pool runs out, its last document
stays (published: dropped); a c4 document comes again only when no other is long enough (published: drawn with
replacement), and a window may end at the document's last token.
"""

from collections.abc import Callable

from core.calibration import CalibChoice
from core.digest import digest
from core.types import CalibSet
from evaluation.calibration.documents import Tokens, check_budget, sample_task, worked_documents
from evaluation.calibration.windows import sample_windows
from evaluation.tasks.base import Task


def build_solver_calib(choice: CalibChoice, task: Task, docs, tokenizer, *, scoring: str, max_length: int, chat: bool,
                       loss: str, budget_tokens: int, window: int, seed: int,
                       texts: Callable[[str], list[str]]) -> CalibSet:
    """Return the calibration set of ``choice``; ``texts`` is called, only when needed, with "c4", "wikitext2" or
    "file:PATH".
    """
    check_budget(budget_tokens)
    sequences: list[Tokens] = []
    own = choice.own(budget_tokens)
    template = {"choice": list(choice), "loss": "all"}
    if choice.kind in ("task", "mix"):
        worked = worked_documents(task, docs, tokenizer, scoring=scoring, max_length=max_length, chat=chat, loss=loss)
        sequences += sample_task(worked, max(own, 1), seed)
        template |= {"loss": loss, "task": task.name, "version": task.version, "scoring": scoring,
                     "chat": tokenizer.chat_template if chat else None}
    if choice.text:
        sequences += sample_windows(texts(choice.text), tokenizer, window=window, seed=seed, style=choice.text,
                                    budget_tokens=max(budget_tokens - own, 1))
    ids, tokens, masks, cut = zip(*sequences, strict=True)
    name = {"task": task.name, "mix": f"{task.name}+c4"}.get(choice.kind, choice.kind)
    return CalibSet(task=name, doc_ids=ids, tokens=tokens, loss_mask=masks, seed=seed, template=digest(template),
                    truncated=sum(cut), mixed=choice.kind == "mix")


def calib_digest(calib: CalibSet) -> str:
    """Return what identifies the sequences: ids, tokens and masks."""
    return digest([list(calib.doc_ids), list(calib.tokens), list(calib.loss_mask)])
