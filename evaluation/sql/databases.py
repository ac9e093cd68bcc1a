"""The databases of a data folder: schemas from tables.json, content, and which documents they can judge."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from core.digest import digest
from core.errors import DataError
from evaluation.data.documents import Doc
from evaluation.sql.judge import JUDGE, SECONDS, Verdict
from evaluation.sql.schema import read_schemas


class Databases:
    """``FOLDER/tables.json`` and ``FOLDER/database/ID/ID.sqlite``; a document's stratum is its database's id."""

    def __init__(self, folder: Path, seconds: float = SECONDS):
        self.folder, self.seconds = folder, seconds
        self.schemas = read_schemas(folder / "tables.json")
        self._runs: dict[tuple[str, str], bool] = {}

    def path(self, name: str) -> Path:
        return self.folder / "database" / name / f"{name}.sqlite"

    def compare(self, doc: Doc, answer: str) -> Verdict:
        """What the document's database says of an answer."""
        return JUDGE.compare(self.path(doc.stratum), doc.gold, answer, self.seconds)

    def judges(self, doc: Doc) -> bool:
        """Whether the database is there and the gold query runs on it, the same each time."""
        key = doc.stratum, doc.gold
        if key not in self._runs:
            self._runs[key] = self.path(doc.stratum).is_file() and self.compare(doc, doc.gold).same
        return self._runs[key]

    def told(self, docs: Sequence[Doc]) -> str:
        """How the documents are judged, for people."""
        rest = [doc for doc in docs if not self.judges(doc)]
        absent = sum(not self.path(doc.stratum).is_file() for doc in rest)
        why = [f"{count} {'has' if count == 1 else 'have'} {what}" for count, what in (
            (absent, "no database"), (len(rest) - absent, "a gold query that fails on the database")) if count]
        return (f"{len(docs) - len(rest)} of {len(docs)} documents judged by execution"
                + (f"; {' and '.join(why)}, judged by the text of the query" if rest else ""))

    def content(self, docs: Sequence[Doc]) -> str:
        """Digest of the databases of these documents, and of which can judge."""
        files = {name: _sha256(self.path(name)) for name in sorted({doc.stratum for doc in docs})}
        return digest([files, [doc.doc_id for doc in docs if self.judges(doc)]])


def _sha256(path: Path) -> str | None:
    """Of a file's bytes; None where there is none."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"database {path} cannot be read ({error.strerror}); mend its permissions") from None
