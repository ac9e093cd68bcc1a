"""Settings of methods: each is declared once, where it is read, with its type, default, range and one line of help.

A setting stands on the record of the scorer, allocator or quantizer that reads it, as in
``@scorer(..., params=(SCORE_DOCS, ...))``.  From there come its flag and the ``--help`` text, the values that are
allowed, the key under which scores are stored, what may stand in a method's brackets (``TaCQ[corrupt=rtn]``), and the
"did you mean" of a misspelt one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from core.errors import UserError

KINDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Setting:
    """One thing that a method can be told."""

    name: str
    kind: type  # int, float, str or bool
    default: Any  # None = the reader's own rule, which ``help`` states
    help: str
    low: float | None = None  # least and greatest value, bounds included
    high: float | None = None
    choices: tuple = ()
    check: Callable[[Any], Any] | None = None  # raises UserError for a value of the right type that means nothing
    flag: bool = True  # a flag of the command line for all methods that read it; otherwise it stands in brackets only
    documents: bool = False  # it says how many calibration documents its scorer reads

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"setting {self.name!r} is of kind {self.kind}; use int, float, str or bool")
        if not self.name.isidentifier() or not self.help:
            raise ValueError(f"setting {self.name!r} needs a name that is an identifier, and one line of help")
        if self.default is not None:
            self.checked(self.default)

    def checked(self, value, where: str = ""):
        """``value`` if it can be; UserError otherwise.  ``where`` is how it was given, such as ``TaCQ[...]``."""
        shown = f"{where or '--' + self.name} is"
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            raise UserError(f"{shown} {value!r}; give {KINDS[self.kind]}")
        if self.choices and value not in self.choices:
            raise UserError(f"{shown} {value!r}; use one of: {', '.join(map(str, self.choices))}")
        if self.kind in (int, float) and not self._in_range(value):
            raise UserError(f"{shown} {value:g}; it must be {self.range}")
        if self.check is not None:
            try:
                self.check(value)
            except UserError as error:  # it speaks of the flag
                raise UserError(f"{where}: {error}" if where else str(error)) from None
        return value

    def of(self, options: dict):
        """The value among a row's options, or the default."""
        return options.get(self.name, self.default)

    def _in_range(self, value) -> bool:
        above = self.low is None or value >= self.low
        return above and (self.high is None or value <= self.high) and math.isfinite(value)

    @property
    def range(self) -> str:
        """The allowed numbers in words."""
        if self.high is None:
            return "finite" if self.low is None else f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.low is None else f"from {self.low:g} to {self.high:g}"

    def read(self, text: str, where: str):
        """The value that ``text`` says, as it stands in brackets."""
        try:
            value = WORDS[text.lower()] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            raise UserError(f"{where} is {text!r}; give {KINDS[self.kind]}") from None
        return self.checked(value, where)

    @property
    def allowed(self) -> str:
        """Type, range and default on one line, for listings."""
        kind = "|".join(map(str, self.choices)) if self.choices else self.kind.__name__
        bounds = f", {self.range}" if self.low is not None or self.high is not None else ""
        return f"{kind}{bounds}" + ("" if self.default is None else f"; default {shown(self.default)}")


def shown(value) -> str:
    """A value as it is written in brackets and in help."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)


class Settings:
    """All settings that are declared, by name; two different ones of one name are an error."""

    def __init__(self):
        self._items: dict[str, Setting] = {}

    def declare(self, names: Iterable, who: str) -> tuple[str, ...]:
        """Take up the settings among ``names`` (others are words already known); returns all names."""
        for item in names:
            if isinstance(item, Setting) and self._items.setdefault(item.name, item) != item:
                raise ValueError(f"{who} declares setting {item.name!r} otherwise than it is declared already; rename "
                                 "it")
        return tuple(item.name if isinstance(item, Setting) else item for item in names)

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __getitem__(self, name: str) -> Setting:
        return self._items[name]

    def __iter__(self):
        return iter(self._items.values())


SETTINGS = Settings()
PUBLISHED = Setting("published", bool, False, "reproduce the published codes' quirks (docs/METHODS.md)")
SETTINGS.declare((PUBLISHED,), "core")
