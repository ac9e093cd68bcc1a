"""Rows of a dataset from the hub, a local folder or the embedded sets: one interface, one row type.

The folder and the embedded files have the hub's row schema.  No dataset is named here; what to read is
stated by the task's ``source`` (:class:`evaluation.rows.Source`).  Parquet is read with pyarrow; the
``datasets`` package is imported for the hub only (it takes seconds to import).
"""

import json
from pathlib import Path

from core.errors import DataError, UserError
from evaluation.data.rows import Row, Source
from evaluation.tasks import get_task

SOURCES = ("hub", "folder", "embedded")
EMBEDDED = Path(__file__).resolve().parents[2] / "datasets_local" / "embedded"


def load_rows(dataset: str, source: str, data_dir=None, token: str | None = None) -> list[Row]:
    """Return all rows of ``dataset`` in the source's order, each one checked against the task's fields."""
    info = get_task(dataset).source
    if source == "hub":
        rows = _from_hub(info, dataset, token)
    elif source == "folder":
        if data_dir is None:
            raise UserError(f"data source 'folder' for {dataset!r} needs a folder; pass --data_dir")
        rows = _from_folder(info, Path(data_dir))
    elif source == "embedded":
        if info.embedded is None:
            raise UserError(f"dataset {dataset!r} has no embedded set; pass --data_source hub or folder")
        rows = _from_file(EMBEDDED / info.embedded, info, "embedded")
    else:
        raise UserError(f"unknown data source {source!r}; use one of: {', '.join(SOURCES)}")
    if not rows:
        where = f"folder {str(data_dir)!r}" if source == "folder" else f"source {source!r}"
        raise DataError(f"dataset {dataset!r} from {where} has no rows; expected at least one, check the source")
    fields = info.fields | ({"subset": "text"} if info.has_subsets else {})
    for row in rows:
        row.check(fields)
    return rows


def _from_folder(info: Source, folder: Path) -> list[Row]:
    """Read ``<folder>/<info.folder>.parquet`` or ``.jsonl``; a ``*`` means every subset folder, sorted by name."""
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"data folder {str(folder)!r} {state}; pass --data_dir with a folder in the hub's schema")
    if not info.has_subsets:
        return _from_file(_pick_file(folder / info.folder), info, "folder")
    head, tail = info.folder.split("*")
    base = folder / head
    subsets = sorted(p.name for p in base.iterdir() if p.is_dir()) if base.is_dir() else []
    if not subsets:
        raise DataError(f"{str(base)!r} has no subset folders; expected files such as {info.folder}.parquet below {str(folder)!r}")
    rows = []
    for subset in subsets:
        rows += _from_file(_pick_file(Path(f"{base / subset}{tail}")), info, "folder", subset)
    return rows


def _pick_file(stem: Path) -> Path:
    for suffix in (".parquet", ".jsonl"):
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    raise DataError(f"data file {stem!s}.parquet (or .jsonl) does not exist; put it there or pass another --data_dir")


def _from_file(path: Path, info: Source, source: str, subset: str | None = None) -> list[Row]:
    if not path.is_file():
        raise DataError(f"data file {path!s} does not exist; restore it or use another --data_source")
    records = _read_parquet(path, info) if path.suffix == ".parquet" else _read_jsonl(path)
    return _rows(records, str(path), source, subset)


def _rows(records, origin: str, source: str, subset: str | None) -> list[Row]:
    extra = {} if subset is None else {"subset": subset}
    return [Row({**record, **extra}, origin, number, source) for number, record in enumerate(records, start=1)]


def _columns(info: Source, present) -> list[str]:
    """Top-level columns that the task reads; the others (search results, contexts) may be huge."""
    wanted = {field.split(".")[0] for field in (*info.fields, *info.optional)}
    return [name for name in present if name in wanted]


def _read_parquet(path: Path, info: Source) -> list[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        present = pq.read_schema(path).names
        for field in info.fields:
            if field.split(".")[0] not in present:
                raise DataError(f"{path}, row 1, field {field!r}: expected this column, but the file has only: {', '.join(present)}; "
                                "use the hub's schema")
        return pq.read_table(path, columns=_columns(info, present)).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]}); write it again") from None


def _read_jsonl(path: Path) -> list[dict]:
    records = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines(): U+2028 may stand inside a text
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); write it again as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            if number < len(lines):
                raise DataError(f"{path}, row {number}: expected a JSON object, but the line is blank; remove it")
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, row {number}: expected a JSON object, but it does not parse ({error.msg}); correct the row") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, row {number}: expected a JSON object, but it is {type(record).__name__}; correct the row")
        if "\\ud" in line and not _is_text(record):
            raise DataError(f"{path}, row {number}: expected text, but it holds half of a pair such as \\ud800, no character; correct the row")
        records.append(record)
    return records


def _is_text(record: dict) -> bool:
    """Whether every text can be written down; JSON lets half of a surrogate pair through, and tokenizers stop at it."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_hub(info: Source, dataset: str, token: str | None) -> list[Row]:
    if info.hub_id is None:
        raise UserError(f"dataset {dataset!r} is not on the hub; pass --data_source folder")
    import datasets

    # ConnectionError is an OSError; the hub client's own errors derive from OSError or ValueError
    try:
        configs = datasets.get_dataset_config_names(info.hub_id, token=token) if info.hub_config == "*" else [info.hub_config]
        rows = []
        for config in sorted(configs, key=str):
            table = datasets.load_dataset(info.hub_id, config, split=info.split, token=token)
            table = table.select_columns(_columns(info, table.column_names))
            origin = f"hub:{info.hub_id}" + (f"/{config}" if config else "")
            rows += _rows(table, origin, "hub", config if info.has_subsets else None)
        return rows
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).splitlines() or ["no message"])[0]
        raise DataError(f"dataset {dataset!r} could not be loaded from the hub as {info.hub_id!r} ({type(error).__name__}: {first}); "
                        "go online, pass --hf_token, or use --data_source folder or embedded") from None
