"""Texts of no task, for calibration: C4 (first shard of the English training split), WikiText-2 (raw, training split).

The test splits stay unread, because perplexity is measured on them.  A document is a row of the source as
it stands: WikiText-2's blank rows count, so that rows joined by a blank line are the published corpus.
In a folder the texts lie under the first of these names that exists, as parquet or jsonl with a column "text":

    c4          c4/train, c4_sample/train
    wikitext2   wikitext2/wikitext-2-raw-v1/train, wikitext2/train
"""

from dataclasses import dataclass, field
from pathlib import Path

from core.calibration import OWN
from core.errors import DataError, UserError, did_you_mean
from evaluation.data.files import columns, existing_file, read_records
from evaluation.data.own_text import own_rows
from evaluation.data.rows import Row
from evaluation.data.sources import check_data_folder, hub_errors, unknown_source

COLUMN = "text"


@dataclass(frozen=True)
class TextSource:
    """Where the documents of one collection are."""

    hub_id: str
    hub_config: str | None
    folders: tuple[str, ...]  # below --data_dir, without suffix; the first that exists is read
    hub_options: dict = field(default_factory=dict)


TEXTS = {
    # one shard of 1024: without "no_checks" the hub's client misses the other splits that the card promises
    "c4": TextSource("allenai/c4", None, ("c4/train", "c4_sample/train"),
                     {"data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}, "verification_mode": "no_checks"}),
    "wikitext2": TextSource("Salesforce/wikitext", "wikitext-2-raw-v1",
                            ("wikitext2/wikitext-2-raw-v1/train", "wikitext2/train")),
}


def load_texts(name: str, source: str, data_dir=None, token: str | None = None) -> list[str]:
    """Return the documents of ``name`` ("c4", "wikitext2" or "file:PATH") in the source's order."""
    if name.startswith(OWN):
        return [row.get(COLUMN) for row in own_rows(name.removeprefix(OWN))]
    if name not in TEXTS:
        raise UserError(f"unknown general text {name!r}{did_you_mean(name, TEXTS)}; use one of: {', '.join(TEXTS)}")
    if source == "hub":
        origin, documents = _from_hub(name, token)
    elif source == "folder":
        if data_dir is None:
            raise UserError(f"general text {name!r} from source 'folder' needs a folder; pass --data_dir")
        origin, documents = _from_folder(name, Path(data_dir))
    elif source == "embedded":
        raise UserError(f"general text {name!r} has no embedded set; "
                        "pass --data_source hub, or --data_dir with a folder that holds it")
    else:
        raise unknown_source(source)
    if not any(document.strip() for document in documents):
        raise DataError(f"general text {name!r} from {origin} is empty ({len(documents)} rows, none with text); "
                        "check the source")
    return documents


def _from_folder(name: str, folder: Path) -> tuple[str, list]:
    places = TEXTS[name].folders
    check_data_folder(folder, f"that holds {places[0]}.parquet")
    path = next(filter(None, (existing_file(folder / place) for place in places)), None)
    if path is None:
        names = " or ".join(f"{place}.parquet" for place in places)
        raise DataError(f"general text {name!r} is not below {str(folder)!r}, which has no {names} (or .jsonl) "
                        "and no other split is read; put it there or pass --data_source hub")
    return str(path), [_document(Row(record, str(path), number))
                       for number, record in enumerate(read_records(path, (COLUMN,)), start=1)]


def _from_hub(name: str, token: str | None) -> tuple[str, list]:
    import datasets

    of = TEXTS[name]
    origin = f"hub:{of.hub_id}" + (f"/{of.hub_config}" if of.hub_config else "")
    with hub_errors(f"general text {name!r}", of.hub_id, "--data_source folder"):
        table = datasets.load_dataset(of.hub_id, of.hub_config, split="train", token=token, **of.hub_options)
        columns(origin, table.column_names, (COLUMN,))
        return origin, [_document(Row({COLUMN: text}, origin, number))
                        for number, text in enumerate(table[COLUMN], start=1)]


def _document(row: Row) -> str:
    row.check({COLUMN: "text"})
    return row.get(COLUMN)
