"""Rows of a dataset from the hub, a local folder or the embedded sets: one interface, one row type.

The folder and the embedded files have the hub's row schema.  No dataset is named here; what to read is stated by a
:class:`evaluation.data.rows.Source`.  The ``datasets`` package, which takes seconds to import, is for the hub only.
"""

from contextlib import contextmanager
from pathlib import Path

from core.errors import DataError, UserError, did_you_mean
from evaluation.data.files import columns, existing_file, read_records
from evaluation.data.rows import Row, Source

SOURCES = ("hub", "folder", "embedded")
EMBEDDED = Path(__file__).resolve().parents[2] / "datasets_local" / "embedded"


def load_rows(of: Source, source: str, data_dir=None, token: str | None = None) -> list[Row]:
    """Return all rows in the source's order; each row that somebody can mend is checked for the fields it must have.

    Rows of the hub are checked by the task, which drops and counts what it cannot use (evaluation/tasks/base.py).
    """
    if source == "hub":
        rows = _from_hub(of, token)
    elif source == "folder":
        if data_dir is None:
            raise UserError(f"data source 'folder' for {of.name!r} needs a folder; pass --data_dir")
        rows = _from_folder(of, Path(data_dir))
    elif source == "embedded":
        if of.embedded is None:
            raise UserError(f"dataset {of.name!r} has no embedded set; pass --data_source hub or folder")
        path = EMBEDDED / of.embedded
        if not path.is_file():
            raise DataError(f"data file {path!s} does not exist; restore it or use another --data_source")
        rows = _from_file(path, of, source)
    else:
        raise unknown_source(source)
    if not rows and not of.if_there:
        where = f"folder {str(data_dir)!r}" if source == "folder" else f"source {source!r}"
        raise DataError(f"dataset {of.name!r} from {where} has no rows; expected at least one, check the source")
    if source != "hub":
        for row in rows:
            row.check(of.required)
    return rows


def unknown_source(source: str) -> UserError:
    """Return the complaint about a --data_source that there is not."""
    return UserError(f"unknown data source {source!r}{did_you_mean(source, SOURCES)}; use one of: {', '.join(SOURCES)}")


def check_data_folder(folder: Path, holds: str) -> None:
    """Refuse a --data_dir that is no folder; ``holds`` says what is expected in it."""
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"data folder {str(folder)!r} {state}; pass --data_dir with a folder {holds}")


def _from_folder(of: Source, folder: Path) -> list[Row]:
    """Read ``<folder>/<of.folder>.parquet`` or ``.jsonl``; a ``*`` means every subset folder, sorted by name."""
    check_data_folder(folder, "in the hub's schema")
    if not of.has_subsets:
        places = [folder / place for place in (of.folder, *of.other_folders)]
        path = next(filter(None, map(existing_file, places)), None)
        if path is None and of.if_there:
            return []
        return _from_file(path or _pick_file(places[0]), of, "folder")
    head, tail = of.folder.split("*")
    base = folder / head
    subsets = sorted(p.name for p in base.iterdir() if p.is_dir()) if base.is_dir() else []
    if not subsets:
        raise DataError(f"{str(base)!r} has no subset folders; expected files such as {of.folder}.parquet "
                        f"below {str(folder)!r}")
    rows = []
    for subset in subsets:
        rows += _from_file(_pick_file(Path(f"{base / subset}{tail}")), of, "folder", subset)
    return rows


def _pick_file(stem: Path) -> Path:
    path = existing_file(stem)
    if path is None:
        raise DataError(f"data file {stem!s}.parquet (or .jsonl) does not exist; "
                        "put it there or pass another --data_dir")
    return path


def _from_file(path: Path, of: Source, source: str, subset: str | None = None) -> list[Row]:
    return _rows(read_records(path, of.fields, of.optional), origin=str(path), source=source, subset=subset)


def _rows(records, *, origin: str, source: str, subset: str | None) -> list[Row]:
    extra = {} if subset is None else {"subset": subset}
    return [Row({**record, **extra}, origin, number, source) for number, record in enumerate(records, start=1)]


def _from_hub(of: Source, token: str | None) -> list[Row]:
    rows = []
    for config, table in hub_tables(of, token):
        origin = f"hub:{of.hub_id}" + (f"/{config}" if config else "")
        table = table.select_columns(columns(origin, table.column_names, of.fields, of.optional))
        rows += _rows(table, origin=origin, source="hub", subset=config if of.has_subsets else None)
    return rows


def hub_tables(of: Source, token: str | None = None) -> list[tuple]:
    """Return (config, table) of every config that the source names, sorted; any failure of the hub is one sentence."""
    if of.hub_id is None:
        raise UserError(f"dataset {of.name!r} is not on the hub; pass --data_source folder")
    import datasets

    with hub_errors(f"dataset {of.name!r}", of.hub_id, "--data_source folder or embedded"):
        configs = [of.hub_config]
        if of.hub_config == "*":
            configs = sorted(datasets.get_dataset_config_names(of.hub_id, token=token))
        return [(config, datasets.load_dataset(of.hub_id, config, split=of.split, token=token, **of.hub_options))
                for config in configs]


@contextmanager
def hub_errors(what: str, hub_id: str, instead: str):
    """Turn whatever the hub client raises within into one sentence about ``what``."""
    import datasets

    # ConnectionError is an OSError; the hub client's own errors derive from OSError or ValueError
    try:
        yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).splitlines() or ["no message"])[0]
        raise DataError(f"{what} could not be loaded from the hub as {hub_id!r} ({type(error).__name__}: {first}); "
                        f"go online, set HF_TOKEN where it is gated, or run with {instead}") from None
