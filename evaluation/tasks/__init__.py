"""Datasets as tasks.  A newcomer adds one file here that calls ``register``; nothing else is edited."""

import importlib
import pkgutil

from core.calibration import names_in
from core.errors import UserError
from core.registry import DATASETS
from evaluation.tasks.base import Task


def get_tasks(names: str) -> list[Task]:
    """The tasks of several names joined by "+"; an unknown one, or one that is named twice, is a UserError."""
    each = names_in(names)
    if twice := next((name for name in each if each.count(name) > 1), None):
        raise UserError(f"{names} names {twice} twice; name each data set once")
    return [get_task(name) for name in each]


def get_task(name: str) -> Task:
    """Return the task called ``name``, or the part of one (``mmlu:stem``); an unknown name is a UserError."""
    whole, colon, part = name.partition(":")
    task = DATASETS.get(whole)
    return task.part(part) if colon else task


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")  # a sibling that does not import stops everything, loudly
