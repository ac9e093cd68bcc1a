"""Datasets as tasks.  A newcomer adds one file here that calls ``register``; nothing else is edited."""

import importlib
import pkgutil

from core.registry import DATASETS
from evaluation.tasks.base import Task


def get_task(name: str) -> Task:
    """Return the task called ``name``, or the part of one (``mmlu:stem``); an unknown name is a UserError."""
    whole, colon, part = name.partition(":")
    task = DATASETS.get(whole)
    return task.part(part) if colon else task


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")  # a sibling that does not import stops everything, loudly
