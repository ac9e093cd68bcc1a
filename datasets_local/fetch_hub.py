"""Copy data sets from the hub into a folder that --data_dir reads.

    python datasets_local/fetch_hub.py DIR [--dataset mmlu gsm8k hellaswag ...] [--text c4 wikitext2]

TriviaQA, MMLU-Pro and CodeMMLU are copied unless others are named.  All splits that a data set reads are written: those
that evaluate, calibrate and give the worked examples.  Rows are written as they are, in the hub's order; the few rows
without a usable question, options or answer are left out and counted, because some of them are an error in a local
file.  ``--text`` adds general text for ``--calib``: C4's first train shard (1 GB), WikiText-2's train split.  A machine
without the hub then needs DIR only.  A data set is written whole or not at all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from core.commandline import Parser
from core.errors import DataError, UserError, storage_error
from core.registry import DATASETS
from evaluation.data.general_text import TEXTS, load_texts
from evaluation.data.rows import Row
from evaluation.data.sources import hub_tables
from evaluation.tasks import get_task
from evaluation.tasks.base import Task

THREE = ("trivia_qa", "mmlu_pro", "code_mmlu")
NAMES = tuple(name for name in DATASETS if DATASETS.get(name).source.hub_id)
APART = {"spider": "not on the hub: its tables.json and the folder database, which belong into {folder}/spider"}


def fetch(name: str, folder: Path) -> list[str]:
    """Write one data set below ``folder``; returns a line a file: its path, its rows, how many were left out."""
    task = get_task(name)
    lines, writers = [], {}
    for source in {s.folder: s for s in (task.source, task.calib_source, task.example_source) if s}.values():
        for config, table in hub_tables(source):
            path = folder / f"{source.folder.replace('*', config or '')}.parquet"
            usable = usable_rows(task, config, table)
            writers[path] = table.select(usable).to_parquet
            left_out = len(table) - len(usable)
            lines.append(f"{path}: {len(usable)} rows" + (f", {left_out} unusable rows left out" if left_out else ""))
    write_all(folder, writers)
    return lines + ([APART[name].format(folder=folder)] if name in APART else [])


def usable_rows(task: Task, config: str | None, table) -> list[int]:
    """The rows to write; all of them where blank rows belong to the text, or where a row alone cannot be judged."""
    if task.windows or task.name in APART:
        return list(range(len(table)))
    rows = (Row(record | {"subset": config or ""}, origin=str(config), number=number)
            for number, record in enumerate(table, start=1))
    return [index for index, row in enumerate(rows) if is_usable(task, row)]


def is_usable(task: Task, row: Row) -> bool:
    """Whether a local file with this row gives a document of it."""
    try:
        return not isinstance(task.document(row), str)
    except DataError:
        return False


def fetch_text(name: str, folder: Path) -> str:
    """Write one general text below ``folder``; returns a line: its path and its documents."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = load_texts(name, "hub")
    path = folder / f"{TEXTS[name].folders[0]}.parquet"
    write_all(folder, {path: lambda temp: pq.write_table(pa.table({"text": documents}), temp)})
    return f"{path}: {len(documents)} documents"


def write_all(folder: Path, writers: dict[Path, Callable]) -> None:
    """Call each writer with a temporary path below ``folder``; the files get their names when all are written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as temp:
        for number, write in enumerate(writers.values()):
            write(Path(temp) / str(number))
        for number, path in enumerate(writers):
            path.parent.mkdir(parents=True, exist_ok=True)
            (Path(temp) / str(number)).replace(path)


def main(argv: list[str] | None = None) -> int:
    """Fetch the data sets named; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", nargs="+", choices=NAMES, default=THREE, metavar="NAME",
                        help=f"of {', '.join(NAMES)} (default: {' '.join(THREE)})")
    parser.add_argument("--text", nargs="*", choices=tuple(TEXTS), default=(),
                        help="general text for --calib, besides the data sets")
    try:
        args = parser.parse_args(argv)
        if args.folder.exists() and not args.folder.is_dir():
            raise UserError(f"{str(args.folder)!r} is a file; give a folder to write the data into")
        for name in args.dataset:
            print("\n".join(fetch(name, args.folder)))
        for name in args.text:
            print(fetch_text(name, args.folder))
    except (UserError, OSError) as error:
        sentence = error if isinstance(error, UserError) else storage_error(error, "a file")
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
