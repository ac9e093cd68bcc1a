"""The process that runs queries: one request a line on stdin, one verdict a line on stdout; started by judge.py.

It imports nothing but the standard library, so that it starts in a moment and little can be reached from it.  What
a query may do is a short list: read and compute.  The file is opened as one that cannot change, no file can be
written by this process at all, and its memory is limited.  A query is interrupted when its time is up; whatever SQLite
does not interrupt (one call that takes minutes) is ended by the kernel's alarm, which ends the process too.  The same
alarm ends a process that nobody asks for a while, so none is left behind whatever happens to its parent.
"""

import json
import math
import resource
import signal
import sqlite3
import sys
import time
from collections import Counter
from urllib.parse import quote

IDLE = 60  # seconds without a request
GRACE = 0.5  # seconds between the interruption of a query and the end of the process
MEMORY = 1 << 30  # bytes of address space
LONGEST = 10_000_000  # bytes of a text or a row
TOLERANCE = 1e-6  # relative, of numbers that are not both integers
STEPS = 10_000  # of SQLite's machine between two looks at the clock
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_FUNCTION}
FORBIDDEN = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"}  # functions that reach outside


class Refused(Exception):
    """A query that gives no rows to compare; says why."""


def main() -> None:
    """Answer requests until there are none."""
    _confine()
    while True:
        signal.setitimer(signal.ITIMER_REAL, IDLE)
        line = sys.stdin.readline()
        if not line:
            return
        print(json.dumps(verdict(json.loads(line))), flush=True)


def _confine() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes stdin
    for limit, most in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, MEMORY)):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def verdict(request: dict) -> dict:
    """Whether the answer's rows are the gold query's; what went wrong with either."""
    said = {"same": False, "gold_error": None, "answer_error": None}
    tables = []
    for which in ("gold", "answer"):
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + GRACE)
        try:
            tables.append(rows_of(request["database"], request[which], request["seconds"], request["rows"]))
        except (Refused, sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            said[f"{which}_error"] = (str(error) or type(error).__name__)[:200]
            return said
    signal.setitimer(signal.ITIMER_REAL, request["seconds"] + GRACE)
    return said | {"same": same_rows(*tables, ordered=request["ordered"])}


def rows_of(database: str, query: str, seconds: float, most: int) -> list[tuple]:
    """The rows of one query that only reads; texts that are not UTF-8 keep their bytes."""
    ends = time.monotonic() + seconds
    base = sqlite3.connect(f"file:{quote(database)}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        base.execute("PRAGMA temp_store = MEMORY")
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        base.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        base.set_authorizer(_may)
        base.set_progress_handler(lambda: time.monotonic() > ends, STEPS)
        cursor = base.execute(query)
        if cursor.description is None:
            raise Refused("it is no query")
        rows = cursor.fetchmany(most + 1)
    except sqlite3.OperationalError as error:
        if time.monotonic() > ends:
            raise Refused(f"it takes longer than {seconds:g} s") from None
        raise error
    finally:
        base.close()
    if len(rows) > most:
        raise Refused(f"it gives more than {most} rows")
    return rows


def _may(action: int, first, second, database, trigger) -> int:
    fine = action in ALLOWED and not (action == sqlite3.SQLITE_FUNCTION and str(second).lower() in FORBIDDEN)
    return sqlite3.SQLITE_OK if fine else sqlite3.SQLITE_DENY


def same_rows(gold: list[tuple], answer: list[tuple], ordered: bool) -> bool:
    """Whether two results are the same rows as often, columns in order; rows in order only if ``ordered``."""
    if len(gold) != len(answer):
        return False
    if ordered:
        return all(map(_same_row, gold, answer))
    mine, theirs = Counter(gold), Counter(answer)  # 1 and 1.0 are one value here; what is left differs by rounding
    left = list((theirs - mine).elements())
    for row in (mine - theirs).elements():
        partner = next((i for i, other in enumerate(left) if _same_row(row, other)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def _same_row(one: tuple, other: tuple) -> bool:
    return len(one) == len(other) and all(map(_same_value, one, other))


def _same_value(one, other) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)) and float in (type(one), type(other)):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return one == other  # a text is never a number, and NULL is NULL


if __name__ == "__main__":
    main()
