"""Several data sets that calibrate together, so that one quantized model answers the questions of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, zip_longest
from types import SimpleNamespace
from typing import NoReturn

from core.calibration import AND, CalibChoice, is_general
from core.digest import digest
from core.errors import UserError
from core.types import CalibSet
from harness.stages.documents import TaskData

WORKED = CalibChoice("task", 1.0)


class JointData:
    """What calibrates where --calib_dataset names several data sets: of each an equal share of the tokens.

    It has of :class:`TaskData` what calibration reads.
    """

    def __init__(self, parts: Sequence[TaskData]):
        self.parts = tuple(parts)
        self.task = SimpleNamespace(name=AND.join(part.task.name for part in self.parts), general_text=None)

    @cached_property
    def calib_docs(self) -> tuple:
        """The documents of all data sets; UserError where one is of two of them, and would count twice."""
        of: dict[tuple, str] = {}
        for part in self.parts:
            own = {(doc.question, doc.options) for doc in part.calib_docs}
            if both := next((of[one] for one in own if one in of), None):
                raise UserError(f"--calib_dataset {self.task.name}: {both} and {part.task.name} share documents, which "
                                "would count twice; name one of the two")
            of |= dict.fromkeys(own, part.task.name)
        return tuple(_in_turns([part.calib_docs for part in self.parts]))

    def prompts(self, choice: CalibChoice, tokens: int, window: int, asked: bool = False) -> CalibSet:
        """The prompts of all data sets in turns, so that the first few are of each."""
        return _joined([part.prompts(choice, tokens, window, asked=asked) for part in self._read(choice)])

    def solver_calib(self, choice: CalibChoice, *, tokens: int, window: int, loss: str, seed: int) -> CalibSet:
        """Worked documents of all data sets in turns, of each an equal share of the tokens; of a mix the general text
        after them, once.
        """
        parts = self._read(choice)
        if is_general(choice.kind):
            return parts[0].solver_calib(choice, tokens=tokens, window=window, loss=loss, seed=seed)
        own = choice.own(tokens)
        worked = _joined([part.solver_calib(WORKED, tokens=max(1, own // len(parts)), window=window, loss=loss,
                                            seed=seed) for part in parts])
        if choice.kind == "task":
            return worked
        text = parts[0].solver_calib(CalibChoice(choice.text, 0.0), tokens=max(1, tokens - own), window=window,
                                     loss="all", seed=seed)
        return replace(worked, task=f"{worked.task}{AND}{text.task}", doc_ids=worked.doc_ids + text.doc_ids,
                       tokens=worked.tokens + text.tokens, loss_mask=worked.loss_mask + text.loss_mask,
                       template=digest([worked.template, text.template]), mixed=True,
                       truncated=worked.truncated + text.truncated)

    def _read(self, choice: CalibChoice) -> tuple[TaskData, ...]:
        """The parts that are read: of general text, which is the same for all, the first."""
        if is_general(choice.kind):
            return self.parts[:1]
        if text := next((part.task.name for part in self.parts if part.task.general_text is not None), None):
            raise UserError(f"--calib_dataset {self.task.name} reads worked documents, and {text} has only general "
                            "text; leave it out")
        return self.parts

    @property
    def labels_digest(self) -> NoReturn:
        """There is none: a task's metric is of one task."""
        raise UserError(f"a method that reads a task's metric was given several tasks, {self.task.name}; give "
                        "--calib_dataset one of them, or name what is asked by --dataset, and each calibrates on its "
                        "own")


def _joined(sets: Sequence[CalibSet]) -> CalibSet:
    """The documents of several sets in turns, named after their set; one set alone as it is."""
    if len(sets) == 1:
        return sets[0]
    named = [[(f"{calib.task}/{name}", *rest) for name, *rest in
              zip(calib.doc_ids, calib.tokens, calib.loss_mask, strict=True)] for calib in sets]
    ids, tokens, masks = zip(*_in_turns(named), strict=True)
    return CalibSet(AND.join(calib.task for calib in sets), ids, tokens, masks, sets[0].seed,
                    digest([calib.template for calib in sets]), sum(calib.truncated for calib in sets))


def _in_turns(lists: Sequence[Sequence]) -> list:
    """The first of each, the second of each, ..."""
    end = object()
    return [one for one in chain.from_iterable(zip_longest(*lists, fillvalue=end)) if one is not end]
