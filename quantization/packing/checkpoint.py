"""A quantized model as a folder that an engine loads: what every format shares.

    export.json     format, what it was made of, bits by the accountant, bytes of the container and why they differ, and
                    length and sha256 of every other file: an export that was cut, edited or mixed is refused on load
    README.md       the model card; free to be edited
    config.json, tokenizer files, generation_config.json, and the weights as the format has them

A format is a module of quantization/packing/formats: ``RULES`` say what it can hold, and what they do not allow is
refused before any work; ``write(folder, contents)`` returns the Sizes; ``WORDS`` and ``LOAD`` go into the card.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.activations import Activations
from core.digest import file_sha256, write_json
from core.errors import UserError, one_line
from core.lazy import torch
from core.types import LayerPlan

ABOUT, CARD, VERSION = "export.json", "README.md", 1


@dataclass(frozen=True)
class Traits:
    """What of a row decides which formats can hold it, known before anything is computed."""

    method: str
    forms: frozenset[str] = frozenset({"grid"})  # of quantization/bits.py
    keeps: bool = False  # single weights, columns or rows at 16 or 8 bits
    mixes_groups: bool = False  # groups of one linear have bits of their own
    symmetric: bool = False  # ranges around zero
    bits: tuple[int, ...] = ()  # that a linear may get
    group: int = 0  # input columns that share a scale; of whole rows what all their widths are multiples of
    activations: bool = False  # quantized while the model runs
    quantized: bool = True  # fp16 rows are not
    family: str = ""  # config.json's model_type
    fused: bool = False  # linears were made of what the checkpoint keeps in one parameter (core/plain.py)


@dataclass(frozen=True)
class Rules:
    """What a format can hold."""

    forms: frozenset[str] | None = None  # None: all
    keeps: bool = False
    mixes_groups: bool = False
    asymmetric: bool = True
    bits: frozenset[int] | None = None
    around_zero: frozenset[int] = frozenset()  # more bits, of linears without zero points
    families: tuple[str, ...] = ()  # none: all
    fused: bool = False
    group: Callable[[int], bool] = lambda size: True
    groups: str = ""  # which groups, in words
    activations: bool = False

    def against(self, row: Traits) -> str | None:
        """Why the row cannot be held, or None."""
        if self.families and row.family not in self.families:
            return f"is of a {row.family} model (only {' and '.join(self.families)})"
        if row.fused and not self.fused:
            return f"is of a {row.family} model, whose checkpoint keeps experts or transposed matrices in one parameter"
        if not row.quantized:
            return None
        if self.forms is not None and row.forms - self.forms:
            return f"stores the form {min(row.forms - self.forms)!r}"
        if row.keeps and not self.keeps:
            return "keeps single weights at more bits"
        if row.mixes_groups and not self.mixes_groups:
            return "gives the groups of one linear bits of their own"
        if row.activations and not self.activations:
            return "quantizes activations while the model runs"
        held = None if self.bits is None else self.bits | (self.around_zero if row.symmetric else frozenset())
        if held is not None and (odd := sorted(set(row.bits) - held)):
            return f"may store linears at {odd[0]} bits (--levels {' '.join(map(str, sorted(held)))} would not)"
        if not self.group(row.group):
            return f"has groups of {row.group} ({self.groups})"
        if not self.asymmetric and not row.symmetric:
            return f"has zero points ({row.method}[symmetric=true] has none)"
        return None


@dataclass
class Packed:
    """One quantized linear: its plan and its stored arrays (quantization/packing/forms.py)."""

    layer: LayerPlan
    arrays: dict[str, np.ndarray]  # uint8


@dataclass
class Contents:
    """What is exported."""

    module: torch.nn.Module  # holds ŵ
    tokenizer: object
    linears: dict[str, Packed]  # those below 16 bits
    quantizer: str
    activations: Activations = field(default_factory=Activations)
    kept_channels: dict[str, torch.Tensor] = field(default_factory=dict)  # bool [in] by linear

    @property
    def counted(self) -> int:
        """Bytes of the quantized linears by the accountant."""
        return sum(array.nbytes for packed in self.linears.values() for array in packed.arrays.values())


@dataclass
class Sizes:
    """Bytes of a container's weights, by what they are."""

    linears: int = 0  # all that stands for a quantized linear's weights
    others: int = 0  # embeddings, norms, head, linears that are not quantized
    extra: dict[str, int] = field(default_factory=dict)  # of ``linears``: more than is counted, by reason


def format_names() -> tuple[str, ...]:
    return ("hf", "packed", "compressed-tensors", "mlx", "gguf")


def format_of(name: str):
    """The module of a format; UserError for another name."""
    from importlib import import_module

    if name not in format_names():
        raise UserError(f"--format is {name!r}; use one of: {', '.join(format_names())}")
    return import_module(f"quantization.packing.formats.{name.replace('-', '_')}")


def check_can_hold(name: str, row: Traits) -> None:
    """Refuse a row that a format cannot hold; names those that can."""
    why = format_of(name).RULES.against(row)
    if why is None:
        return
    others = [other for other in format_names() if format_of(other).RULES.against(row) is None]
    raise UserError(f"format {name} cannot hold {row.method}, which {why}; formats that can: {', '.join(others)}")


def seal(folder: Path, facts: dict) -> None:
    """Write export.json last: facts, and length and sha256 of all other files but the card."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
             for path in sorted(folder.iterdir()) if path.name not in (ABOUT, CARD)}
    write_json(folder / ABOUT, {"export_version": VERSION, **facts, "files": files})


def is_export(folder: str | Path) -> bool:
    """Whether a folder says that it is an export."""
    return (Path(folder) / ABOUT).is_file()


def about_export(folder: str | Path) -> dict:
    """What export.json says; UserError if it is damaged or of another version."""
    path = Path(folder) / ABOUT
    try:
        told = json.loads(path.read_text())
        missing = {"export_version", "format", "files"} - told.keys()
        if missing:
            raise ValueError(f"{min(missing)} is missing")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{str(path)!r} does not read ({one_line(error)}); export the model again") from None
    if told["export_version"] != VERSION or told["format"] not in format_names():
        raise UserError(f"{str(path)!r} is of version {told['export_version']} and format {told['format']!r}, which "
                        f"this version does not know; export the model again")
    return told


def check_export(folder: str | Path) -> dict:
    """What export.json says, if every file that it names is as it was written; else UserError that names one."""
    told = about_export(folder)
    for name, facts in told["files"].items():
        path = Path(folder) / name
        if not path.is_file():
            raise UserError(f"export {str(folder)!r} lacks {name}; copy it again or export the model again")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise UserError(f"{str(path)!r} has {size} bytes, {facts['bytes']} were written; copy it again or export "
                            "the model again")
        if file_sha256(path) != facts["sha256"]:
            raise UserError(f"{str(path)!r} is not what was written; copy it again or export the model again")
    return told
