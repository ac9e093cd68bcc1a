"""What the YAML files of this folder do to rows before they are asked."""

import re


def abstract_algebra(rows):
    """The rows of one subject of MMLU."""
    return rows.filter(lambda row: row["subject"] == "abstract_algebra")


def anatomy(rows):
    """The rows of another."""
    return rows.filter(lambda row: row["subject"] == "anatomy")


def tidy(text: str) -> str:
    """A text without the marks of its source: a title's becomes a full stop, others go with their brackets."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def hellaswag(rows):
    """Prompt, endings and the number of the right one."""
    return rows.map(lambda row: {"asked": tidy(f"{row['activity_label']}: {row['ctx']}"),
                                 "ends": [tidy(end) for end in row["endings"]], "right": int(row["label"])})
