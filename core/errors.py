"""Errors that a user can mend, and the storage errors that stop a whole grid.

A ``UserError`` carries one sentence: the thing, the value, what is allowed, the mend.  The command
line prints it without a traceback and exits with 2; everything else is a defect of ours.
"""

import difflib
import errno
import re
import textwrap


def one_line(error: BaseException) -> str:
    """Another library's message as one line; its name where it says nothing."""
    return textwrap.shorten(str(error), 240, placeholder=" ...") or type(error).__name__


def did_you_mean(name: str, known) -> str:
    """`` (did you mean 'x'?)`` for the nearest known name, ignoring case, or an empty string."""
    lower = {str(k).lower(): str(k) for k in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f" (did you mean {lower[near[0]]!r}?)" if near else ""


class UserError(Exception):
    """Input that cannot be used; the message is one sentence that says how to mend it."""


class BudgetError(UserError):
    """A bit budget that no plan can meet."""


class DataError(UserError):
    """Missing or malformed data; names file, row and field."""


class StorageError(UserError):
    """The disk or its permissions; every further cell would fail alike, so the grid stops."""


MENDS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file size limit of this shell (ulimit -f) is reached; raise it",
    errno.EROFS: "the file system is read-only; choose another folder with --cache_dir or --results_dir",
    errno.EACCES: "permission is denied; choose another folder with --cache_dir or --results_dir, or mend its "
                  "permissions",
    errno.EPERM: "permission is denied; choose another folder with --cache_dir or --results_dir, or mend its "
                 "permissions",
    errno.EIO: "the file system reports an input/output error; check the disk",
    errno.ESTALE: "the file server lost the file; check the network file system",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter --cache_dir or --results_dir",
    errno.EMFILE: "too many files are open; raise this shell's limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; run fewer programs at a time",
}
READ_MENDS = dict.fromkeys((errno.EACCES, errno.EPERM),
                           "permission is denied; give the user who runs this the right to read it")
SAFE = {"write": "nothing is half-written", "read": "nothing is thrown away"}


def storage_error(error: BaseException, where, doing: str = "write") -> StorageError | None:
    """The one-sentence form of an error that disk or permissions caused, or None if it is of another kind.

    safetensors wraps the operating system's error into text of its own ("... (os error 28)").  Who says that it was
    ``doing`` a "read" knows that the error came from its file, so there any error of the operating system counts.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and type(error).__name__ == "SafetensorError":
        match = re.search(r"os error (\d+)", str(error))
        number = int(match[1]) if match else None
    mend = MENDS.get(number)
    if doing == "read" and isinstance(error, OSError):
        mend = READ_MENDS.get(number) or mend or f"{error.strerror or error}; check the file system"
    if mend is None:
        return None
    name = getattr(error, "filename", None) or where
    return StorageError(f"cannot {doing} {str(name)!r}: {mend}; {SAFE[doing]}, and the same command goes on from here")
