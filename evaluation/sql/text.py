"""Queries as text: the one that a model wrote, and whether two are the same but for spelling."""

import re

TOKEN = re.compile(r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\] | \w+ | [<>=!|]{2} | \S""", re.VERBOSE)
BEGINS = re.compile(r"\s*(?:select\b|values\b|\(|with\s+(?:recursive\s+)?\S+\s*(?:\(|as\b))", re.IGNORECASE)
FENCED = re.compile(r"```(?:[ \t]*\w*sql\w*\b)?(.*?)(?:```|\Z)", re.IGNORECASE | re.DOTALL)
ENDS = re.compile(r"```|\n[ \t]*\n")  # what ends a query outside a fenced block, besides ";"


def read_sql(text: str) -> str | None:
    """The query that a model wrote: the text before the first ";"; None where there is none.

    A fenced block is read, whatever stands before it, even if the limit of new tokens cut its end off; a text that
    begins with a query needs no block, and ends at a blank line.
    """
    block = None if BEGINS.match(text) else FENCED.search(text)
    body = block[1] if block else ENDS.split(text.strip(), maxsplit=1)[0]
    return body.partition(";")[0].strip() or None


def normalise_sql(query: str) -> str:
    """One spelling of a query: single spaces, lower case outside quotes, texts in single quotes, no ";" at the end.

    Names in backticks or brackets are plain names.  Texts in double quotes become texts in single ones, as SQLite
    reads them where no column has that name; the data set's queries are full of them.
    """
    return " ".join(map(_spelled, TOKEN.findall(query.rstrip().rstrip(";"))))


def _spelled(token: str) -> str:
    if len(token) > 1 and token[0] in "'\"":
        return "'" + token[1:-1].replace(token[0] * 2, token[0]).replace("'", "''") + "'"
    return (token[1:-1] if len(token) > 2 and token[0] in "`[" else token).lower()


def is_ordered(query: str) -> bool:
    """Whether a query states the order of its rows: ORDER BY outside brackets and quotes."""
    depth, before = 0, ""
    for token in map(str.lower, TOKEN.findall(query)):
        depth += (token == "(") - (token == ")")
        if depth == 0 and (before, token) == ("order", "by"):
            return True
        before = token
    return False
