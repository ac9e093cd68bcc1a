"""Answers out of free text.  None means "could not be parsed" and is counted as such; it is never right.

Nothing is cut at punctuation ("St. Louis" stays whole).  Only open questions are answered in free text; choices are scored
by log-probability, so no letter is ever fished out of a sentence.
"""


def extract(text: str) -> str | None:
    """Return the first line without surrounding white space, or None when nothing is there."""
    return text.strip().split("\n", 1)[0].strip() or None
