"""A text of the user's own: ``file:PATH`` as a data set (its perplexity) or as what calibrates (``--calib``).

PATH is a .txt file (one document), a .parquet or .jsonl file with a column "text" (a document a row), or a folder with
one such file.  Documents are joined by a blank line.
"""

from pathlib import Path

from core.errors import DataError, UserError
from evaluation.data.files import SUFFIXES, read_records
from evaluation.data.rows import Row

COLUMN = "text"


def own_rows(path: str) -> list[Row]:
    """The documents of a text as rows with a field "text".  Raises UserError or DataError for what cannot be read."""
    file = _file(Path(path))
    if file.suffix == ".txt":
        try:
            records = [{COLUMN: file.read_text(encoding="utf-8-sig")}]
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text (byte {error.start}); write it again as UTF-8") from None
    else:
        records = read_records(file, (COLUMN,))
    rows = [Row(record, str(file), number) for number, record in enumerate(records, start=1)]
    for row in rows:
        row.check({COLUMN: "text"})
    if not any(row.get(COLUMN).strip() for row in rows):
        raise DataError(f"{str(file)!r} holds no text ({len(rows)} rows); check the file")
    return rows


def _file(path: Path) -> Path:
    if not path.is_dir():
        if path.suffix not in (".txt", *SUFFIXES) or not path.is_file():
            raise UserError(f"text {str(path)!r} is no .txt, .parquet or .jsonl file that exists; give one, or a "
                            "folder that holds one")
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in (".txt", *SUFFIXES))
    if len(files) != 1:
        raise UserError(f"folder {str(path)!r} holds {len(files)} .txt, .parquet or .jsonl files; name one of them")
    return files[0]
