"""Modules that are imported at their first use.

``--help``, ``--list`` and ``--status`` name methods, allocators and quantizers, and the files that register these would
import torch, which takes seconds.  They write ``from core.lazy import torch`` instead; what is inside a function then
works as ever,
and nothing may use it while the file is read (annotations are not: ``from __future__ import annotations``).
"""

from importlib import import_module
from types import ModuleType


class Lazy(ModuleType):
    """Stands for a module; the first use of a name in it imports it."""

    def __getattr__(self, name: str):
        if name.startswith("__"):  # what inspect and copy ask of any module must not import it
            raise AttributeError(name)
        value = getattr(import_module(self.__name__), name)
        self.__dict__[name] = value  # the next use costs no more than of the module itself
        return value


torch = Lazy("torch")
