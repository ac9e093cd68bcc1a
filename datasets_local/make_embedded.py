"""Writes or checks the embedded data sets: `python datasets_local/make_embedded.py [--check]`.

With --check nothing is written: the rows are generated in memory, every code answer is run, and the exit status is 1 if
a committed file differs or an answer fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(HERE.parent))

from datasets_local.generators.code_mmlu import build_code_mmlu, verify_code
from datasets_local.generators.common import DataError
from datasets_local.generators.mmlu_pro import build_mmlu_pro
from datasets_local.generators.trivia import build_trivia

EMBEDDED = HERE / "embedded"


def generate() -> dict[str, str]:
    """File name to its whole text, for all three sets."""
    sets = {"trivia_qa": build_trivia(), "mmlu_pro": build_mmlu_pro(), "code_mmlu": build_code_mmlu()}
    return {
        f"{name}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for name, rows in sets.items()
    }


def check(folder: Path = EMBEDDED) -> list[str]:
    """What is wrong with the committed files, one message each; an empty list if all is well."""
    try:
        verify_code()
        texts = generate()
    except (DataError, RuntimeError) as error:
        return [str(error)]
    problems = []
    for name, text in texts.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing: run `python datasets_local/make_embedded.py`")
        elif path.read_bytes() != text.encode("utf-8"):
            problems.append(f"{path} differs from what its generator makes: run `python "
                            "datasets_local/make_embedded.py`")
    return problems


def write(folder: Path = EMBEDDED) -> None:
    """Verify the code answers, then write all three files."""
    verify_code()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in generate().items():
        (folder / name).write_bytes(text.encode("utf-8"))
        print(f"{folder / name}: {text.count(chr(10))} rows")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true",
                        help="write nothing, exit 1 if a file differs or an answer is wrong")
    if parser.parse_args(argv).check:
        problems = check()
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        return 1 if problems else 0
    try:
        write()
    except (DataError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
