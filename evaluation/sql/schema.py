"""Spider's tables.json: the schema of every database, as a prompt states it.

    Database pets has these tables:
    student(StuID number, LName text; primary key StuID)
    has_pet(StuID number, PetID number; foreign key StuID -> student(StuID); foreign key PetID -> pets(PetID))
"""

import json
import re
from pathlib import Path

from core.errors import DataError

PLAIN = re.compile(r"\w+\Z")  # names of other characters are written in double quotes, as a query must
NAME = re.compile(r"[^/\\\0]*[^/\\\0.][^/\\\0]*\Z")  # a folder's name, so no path leaves the data folder
WANTED = ("db_id", "table_names_original", "column_names_original", "column_types", "primary_keys", "foreign_keys")


def read_schemas(path: Path) -> dict[str, str]:
    """The text of every schema in a tables.json, by the database's id; one sentence if it cannot be read."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist, and rows of spider name their databases only; "
                        "put the data set's tables.json there, which holds the schemas") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); put the data set's tables.json there") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON; put the data set's tables.json there") from None
    if not isinstance(listed, list):
        raise DataError(f"{path} holds {type(listed).__name__}, not a list of schemas; "
                        "put the data set's tables.json there")
    return dict(_schema(entry, f"{path}, schema {number}") for number, entry in enumerate(listed, start=1))


def _schema(entry, where: str) -> tuple[str, str]:
    lacking = [key for key in WANTED if not isinstance(entry, dict) or key not in entry]
    if lacking:
        raise DataError(f"{where}: expected an object with {', '.join(WANTED)}, but {lacking[0]!r} is missing; "
                        "correct the schema")
    if not isinstance(entry["db_id"], str) or not NAME.match(entry["db_id"]):
        raise DataError(f"{where}: expected 'db_id' to be the name of a folder, but it is {entry['db_id']!r}; "
                        "correct the schema")
    try:
        return entry["db_id"], schema_text(entry)
    except (TypeError, ValueError, IndexError, AttributeError):
        raise DataError(f"{where} ({entry['db_id']!r}): its tables, columns or keys do not fit together; "
                        "correct the schema") from None


def schema_text(entry: dict) -> str:
    """One line a table: its columns with their types, its primary key, its foreign keys."""
    tables = [_quoted(name) for name in entry["table_names_original"]]
    columns = [(table, _quoted(name)) for table, name in entry["column_names_original"]]
    primary = {number for key in entry["primary_keys"] for number in (key if isinstance(key, list) else [key])}
    lines = [f"Database {entry['db_id']} has these tables:"]
    for table, name in enumerate(tables):
        parts = [", ".join(f"{column} {kind}" for (of, column), kind in zip(columns, entry["column_types"], strict=True)
                           if of == table)]
        keys = [columns[number][1] for number in sorted(primary) if columns[number][0] == table]
        parts += [f"primary key {', '.join(keys)}"] if keys else []
        parts += [f"foreign key {columns[one][1]} -> {tables[columns[other][0]]}({columns[other][1]})"
                  for one, other in entry["foreign_keys"] if columns[one][0] == table]
        lines.append(f"{name}({'; '.join(parts)})")
    return "\n".join(lines)


def _quoted(name: str) -> str:
    return name if PLAIN.match(name) else '"' + name.replace('"', '""') + '"'
