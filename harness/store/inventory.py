"""What a cache folder holds by model and stage, and what of it can go: ``--cache_info`` and ``--cache_prune``.

A finished cell is read from its plan, the record of its weights and its samples; those stay.  Everything else is only
read while a new cell is made, and is made again when it is missing, with the same numbers.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from core.errors import UserError, storage_error
from core.locks import held

DROPPABLE = {  # stage: what it is
    "gradients": "sums of gradients, 4 bytes a weight and kind",
    "pivots": "what SPQR and SliM-LLM read of Hessians",
    "scores": "what methods rank by; of single weights the best, 5 bits a weight in all",
    "element_scores": "scores of every single weight, where somebody asked for them all: 4 bytes each",
    "corrupted": "quantized models that TaCQ compares with",
    "library": "forms of every linear that TALK has solved",
    "dots": "slopes of the loss along those forms",
    "distortion": "errors of every linear at every level",
    "damaged": "entries that were put aside",
}
UNFINISHED = "unfinished"  # goes only when it is named: a killed run goes on from it


@dataclass
class Holding:
    """Entries of one model and stage."""

    entries: int = 0
    bytes: int = 0
    seconds: float = 0.0  # that making them took
    folders: list[Path] = field(default_factory=list)


def holdings(root: Path) -> dict[tuple[str, str], Holding]:
    """(model, stage) -> what is there of it; entries whose record does not read count as damaged."""
    found: dict[tuple[str, str], Holding] = defaultdict(Holding)
    for folder, model, stage, seconds in _folders(root):
        one = found[model, stage]
        one.folders.append(folder)
        one.entries, one.seconds = one.entries + 1, one.seconds + seconds
        one.bytes += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return dict(sorted(found.items()))


def _folders(root: Path) -> Iterator[tuple[Path, str, str, float]]:
    for folder in sorted(root.iterdir() if root.is_dir() else ()):
        if folder.name.startswith(".damaged-"):
            yield folder, "", "damaged", 0.0
        elif folder.is_dir() and (folder / "meta.json").is_file():
            try:
                meta = json.loads((folder / "meta.json").read_text())
                facts, identity = meta["provenance"], meta["identity"]
                yield folder, _name(facts.get("model"), identity), identity["stage"], facts.get("seconds", 0.0)
            except (ValueError, KeyError, TypeError, AttributeError):
                yield folder, "", "damaged", 0.0
    for folder in sorted((root / ".partial").glob("*")):
        yield folder, "", UNFINISHED, 0.0


def _name(told, identity: dict) -> str:
    """The model's name as the entry's maker wrote it down, else the start of its digest."""
    named = told.get("given") or told.get("name") if isinstance(told, dict) else told
    named = str(named or (identity.get("model") or {}).get("revision", "")[:12])
    return Path(named).name if os.path.isabs(named) else named


def show_cache(root: Path, console: Console) -> None:
    """Print what is there."""
    table = Table("model", "stage", "entries", "GB", "seconds to make", "", title=f"Cache {root}")
    for column in table.columns[2:5]:
        column.justify = "right"
    total = droppable = 0
    for (model, stage), one in holdings(root).items():
        what = DROPPABLE.get(stage, "a killed run goes on from it" if stage == UNFINISHED else "stays")
        table.add_row(model, stage, f"{one.entries:,}", f"{one.bytes / 1e9:.3f}", f"{one.seconds:,.0f}", what)
        total, droppable = total + one.bytes, droppable + one.bytes * (stage in DROPPABLE)
    console.print(table)
    console.print(f"{total / 1e9:.3f} GB, of which --cache_prune drops {droppable / 1e9:.3f} GB; finished cells stay "
                  "finished, and new cells make again what they need")


def prune(root: Path, stages: Sequence[str] = (), *, dry: bool = False) -> dict[str, Holding]:
    """Drop the entries of these stages, of all in DROPPABLE if none is named; returns what went, by stage.

    Raises UserError for a stage that stays, and while a run uses the cache.
    """
    known = (*DROPPABLE, UNFINISHED)
    if wrong := [stage for stage in stages if stage not in known]:
        raise UserError(f"--cache_prune {wrong[0]!r} is nothing that can go; name any of: {', '.join(known)}")
    at_work = [path.name for path in (root / ".leases").glob("[!.]*") if held(path)]
    if at_work:
        raise UserError(f"a run is making {at_work[0]} in {str(root)!r}; wait for it, or stop it, before anything is "
                        "dropped")
    gone: dict[str, Holding] = defaultdict(Holding)
    for (_, stage), one in holdings(root).items():
        if stage not in (stages or DROPPABLE):
            continue
        gone[stage].entries += one.entries
        gone[stage].bytes += one.bytes
        for folder in () if dry else one.folders:
            _drop(root, folder)
    return dict(gone)


def _drop(root: Path, folder: Path) -> None:
    """Rename first, so that no half an entry is ever seen."""
    aside = root / f".tmp-{secrets.token_hex(8)}"
    try:
        os.replace(folder, aside)
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    except OSError as error:
        raise storage_error(error, folder) or error from error
