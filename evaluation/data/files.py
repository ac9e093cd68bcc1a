"""Parquet and jsonl files as records; every complaint names the file, and the row where there is one.

A jsonl file is UTF-8, one JSON object a line; a byte-order mark in front and blank lines at the end do no harm.
Of parquet only the columns that are asked for are read: the others (search results, contexts) may be huge.
"""

import json
from pathlib import Path

from core.errors import DataError

SUFFIXES = (".parquet", ".jsonl")


def existing_file(stem: Path) -> Path | None:
    """Return ``stem`` with the first suffix that is a file there; a folder of that name is an error."""
    for suffix in SUFFIXES:
        path = stem.with_name(stem.name + suffix)
        if path.is_dir():
            raise DataError(f"data file {str(path)!r} is a folder; put one {suffix} file there")
        if path.is_file():
            return path
    return None


def read_records(path: Path, fields, optional=()) -> list[dict]:
    """Read a file's records; of parquet only the columns of ``fields``, which must be there, and of ``optional``."""
    return read_parquet(path, fields, optional) if path.suffix == ".parquet" else read_jsonl(path)


def columns(origin: str, present, fields, optional=()) -> list[str]:
    """Return the table columns to read for dotted field names; one of ``fields`` that is not present is an error."""
    for field in fields:
        if field.partition(".")[0] not in present:
            raise DataError(f"{origin}, row 1, field {field!r}: expected this column, "
                            f"but it has only: {', '.join(present)}; use the hub's schema")
    wanted = {field.partition(".")[0] for field in (*fields, *optional)}
    return [name for name in present if name in wanted]


def read_parquet(path: Path, fields, optional=()) -> list[dict]:
    """Read the columns that hold ``fields`` and ``optional``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        wanted = columns(str(path), pq.read_schema(path).names, fields, optional)
        return pq.read_table(path, columns=wanted).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a readable parquet file ({reason}); write it again") from None


def read_jsonl(path: Path) -> list[dict]:
    """Read one JSON object a line."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); write it again as UTF-8") from None
    lines = text.split("\n") if text else []  # not splitlines(): U+2028 may stand inside a text
    return [_record(line, f"{path}, row {number}") for number, line in enumerate(lines, start=1)]


def _record(line: str, where: str) -> dict:
    if not line.strip():
        raise DataError(f"{where}: expected a JSON object, but the line is blank; remove it")
    expected = f"{where}: expected a JSON object, but it"
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise DataError(f"{expected} is {type(record).__name__}; correct the row")
        if "\\ud" in line:  # JSON lets half of a surrogate pair through, and tokenizers stop at it
            json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DataError(f"{expected} does not parse ({error.msg}); correct the row") from None
    except UnicodeEncodeError:
        raise DataError(f"{where}: expected text, but it holds half of a pair such as \\ud800, no character; "
                        "correct the row") from None
    except RecursionError:
        raise DataError(f"{expected} has lists or objects inside one another by the hundred; correct the row") from None
    except ValueError as error:  # an integer with more digits than Python turns into a number
        raise DataError(f"{expected} does not parse ({str(error).partition(';')[0]}); correct the row") from None
    return record
