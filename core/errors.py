"""Errors that a user can mend.

A ``UserError`` carries one sentence: the thing, the value, what is allowed, the mend.  The command
line prints it without a traceback and exits with 2; everything else is a defect of ours.
"""


class UserError(Exception):
    """Input that cannot be used; the message is one sentence that says how to mend it."""


class BudgetError(UserError):
    """A bit budget that no plan can meet."""


class DataError(UserError):
    """Missing or malformed data; names file, row and field."""
