"""A row of a data source, and the description of where a dataset's rows come from.

A row remembers its file and number (1 = first), so that every complaint can name file, row and field.
Field names may be dotted: ``answer.value`` is the key ``value`` inside the record ``answer``.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from core.errors import DataError

KINDS = {
    "text": "a text",
    "texts": "a list of texts",
    "id": "a non-empty text or an integer",
    "int": "an integer",
    "number": "a finite number",
    "key": "a letter or a 0-based integer",
}


@dataclass(frozen=True)
class Source:
    """Where a dataset's rows are found and which fields they must have.

    ``folder`` is the path below --data_dir without suffix; a ``*`` in it stands for a subset, as does
    ``hub_config="*"`` on the hub; the subset's name then becomes the field ``subset``.
    """

    hub_id: str | None
    hub_config: str | None
    split: str
    folder: str
    embedded: str | None  # file name in datasets_local/embedded
    fields: dict[str, str]  # dotted field -> kind, see KINDS
    optional: tuple[str, ...] = ()  # fields read when present
    other_folders: tuple[str, ...] = ()  # where the rows are looked for next, below --data_dir
    hub_options: dict = dataclasses.field(default_factory=dict)  # further arguments of ``datasets.load_dataset``
    if_there: bool = False  # whether a folder without the file is fine: then there are no rows

    @property
    def name(self) -> str:
        """What messages call the dataset: the first folder below --data_dir."""
        return self.folder.partition("/")[0]

    @property
    def has_subsets(self) -> bool:
        return "*" in self.folder

    @property
    def required(self) -> dict[str, str]:
        """Every field that a row must have, and its kind."""
        return self.fields | ({"subset": "text"} if self.has_subsets else {})


@dataclass(frozen=True)
class Row:
    """One record as the source states it."""

    data: dict[str, Any]
    origin: str  # file, or hub id and config
    number: int  # 1 = first
    source: str = "folder"  # "hub" | "folder" | "embedded"

    def get(self, field: str, default=None):
        """Return a dotted field, or ``default`` when a key on the way is missing."""
        value = self.data
        for key in field.split("."):
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value

    def error(self, field: str, expected: str, mend: str = "correct the row") -> DataError:
        """Return the one complaint about a field of this row."""
        missing = object()
        value = self.get(field, missing)
        state = f"it is {_short(value)}" if value is not missing else self._lacking(field)
        return DataError(f"{self.origin}, row {self.number}, field {field!r}: expected {expected}, but {state}; {mend}")

    def _lacking(self, field: str) -> str:
        """Why a field is not there: missing, or what should hold it is no record."""
        value, keys = self.data, field.split(".")
        for i, key in enumerate(keys[:-1]):
            value = value.get(key) if isinstance(value, dict) else None
            if value is not None and not isinstance(value, dict):
                return f"{'.'.join(keys[:i + 1])!r} is {_short(value)}, no record"
        return "it is missing"

    def check(self, fields: dict[str, str]) -> None:
        """Raise unless every field is there and of its kind."""
        for field, kind in fields.items():
            if not _is_kind(self.get(field), kind):
                raise self.error(field, KINDS[kind])


def _is_kind(value, kind: str) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str)
    if kind == "texts":
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    if kind == "int":
        return whole
    if kind == "number":
        return whole or (isinstance(value, float) and math.isfinite(value))
    return whole or (isinstance(value, str) and bool(value))  # "id" and "key"


def _short(value) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
