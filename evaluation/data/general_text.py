"""Texts of no task, for calibration: C4 (the first shard of the English training split) and WikiText-2 (raw, training split).

The test splits stay unread, because perplexity is measured on them.  A document is a row of the source as
it stands: WikiText-2's blank rows count, so that rows joined by a blank line are the published corpus.
In a folder the texts lie under the first of these names that exists, as parquet or jsonl with a column "text":

    c4          c4/train, c4_sample/train
    wikitext2   wikitext2/wikitext-2-raw-v1/train, wikitext2/train
"""

from dataclasses import dataclass, field
from pathlib import Path

from core.errors import DataError, UserError
from core.registry import did_you_mean
from evaluation.data.rows import Row, Source
from evaluation.data.sources import SOURCES, _read_jsonl, _read_parquet

COLUMN = "text"
SUFFIXES = (".parquet", ".jsonl")
FIELDS = {COLUMN: "text"}
READ = Source(None, None, "train", "", None, FIELDS)  # what the parquet reader needs to know


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
    "wikitext2": TextSource("Salesforce/wikitext", "wikitext-2-raw-v1", ("wikitext2/wikitext-2-raw-v1/train", "wikitext2/train")),
}


def load_texts(name: str, source: str, data_dir=None, token: str | None = None) -> list[str]:
    """Return the documents of ``name`` ("c4" or "wikitext2") in the source's order."""
    if name not in TEXTS:
        raise UserError(f"unknown general text {name!r}{did_you_mean(name, TEXTS)}; use one of: {', '.join(TEXTS)}")
    if source == "hub":
        origin, documents = _from_hub(name, token)
    elif source == "folder":
        if data_dir is None:
            raise UserError(f"general text {name!r} from source 'folder' needs a folder; pass --data_dir")
        origin, documents = _from_folder(name, Path(data_dir))
    elif source == "embedded":
        raise UserError(f"general text {name!r} has no embedded set; pass --data_source hub, or --data_dir with a folder that holds it")
    else:
        raise UserError(f"unknown data source {source!r}{did_you_mean(source, SOURCES)}; use one of: {', '.join(SOURCES)}")
    for number, document in enumerate(documents, start=1):
        if not isinstance(document, str):
            raise Row({COLUMN: document}, origin, number, source).error(COLUMN, "a text")
    if not any(document.strip() for document in documents):
        raise DataError(f"general text {name!r} from {origin} is empty ({len(documents)} rows, none with text); check the source")
    return documents


def _from_folder(name: str, folder: Path) -> tuple[str, list]:
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"data folder {str(folder)!r} {state}; pass --data_dir with a folder that holds {TEXTS[name].folders[0]}.parquet")
    for place in TEXTS[name].folders:
        for suffix in SUFFIXES:
            path = folder / f"{place}{suffix}"
            if path.is_file():
                return str(path), _column(path)
    places = " or ".join(f"{place}.parquet" for place in TEXTS[name].folders)
    raise DataError(f"general text {name!r} is not below {str(folder)!r}, which has no {places} (or .jsonl) and no other split is read; "
                    "put it there or pass --data_source hub")


def _column(path: Path) -> list:
    if path.suffix == ".parquet":
        return [record[COLUMN] for record in _read_parquet(path, READ)]
    records = _read_jsonl(path)
    for number, record in enumerate(records, start=1):
        Row(record, str(path), number).check(FIELDS)
    return [record[COLUMN] for record in records]


def _from_hub(name: str, token: str | None) -> tuple[str, list]:
    import datasets

    info = TEXTS[name]
    origin = f"hub:{info.hub_id}" + (f"/{info.hub_config}" if info.hub_config else "")
    # ConnectionError is an OSError; the hub client's own errors derive from OSError or ValueError
    try:
        table = datasets.load_dataset(info.hub_id, info.hub_config, split="train", token=token, **info.hub_options)
        if COLUMN not in table.column_names:
            raise DataError(f"{origin}, row 1, field {COLUMN!r}: expected this column, but it has only: {', '.join(table.column_names)}; "
                            "use the hub's schema")
        return origin, list(table[COLUMN])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).splitlines() or ["no message"])[0]
        raise DataError(f"general text {name!r} could not be loaded from the hub as {info.hub_id!r} ({type(error).__name__}: {first}); "
                        "go online, pass --hf_token, or use --data_source folder") from None
