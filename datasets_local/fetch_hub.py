"""Copy TriviaQA, MMLU-Pro and CodeMMLU from the hub into a folder that --data_dir reads.

    python datasets_local/fetch_hub.py DIR [--dataset trivia_qa mmlu_pro code_mmlu] [--text c4 wikitext2]

Rows are written as they are, in the hub's order; the few CodeMMLU rows without a usable answer key are left out and counted,
because a local file with such a row is an error.  ``--text`` adds general text for ``--calib``: C4's first train shard (1 GB), WikiText-2's
train split.  A machine without the hub then needs DIR only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, the first entry is this folder and not the repository
    sys.path.insert(0, str(ROOT))

from evaluation.data.general_text import TEXTS, load_texts
from evaluation.data.rows import Row
from evaluation.tasks import get_task

NAMES = ("trivia_qa", "mmlu_pro", "code_mmlu")


def fetch(name: str, out: Path) -> list[str]:
    """Write one data set below ``out``; returns a line a file: its path, its rows, what was left out."""
    import datasets

    task = get_task(name)
    info = task.source
    configs = sorted(datasets.get_dataset_config_names(info.hub_id)) if info.has_subsets else [info.hub_config]
    lines = []
    for config in configs:
        rows = datasets.load_dataset(info.hub_id, config, split=info.split)
        usable = [i for i in range(len(rows)) if is_usable(task, Row(rows[i] | {"subset": config or ""}, info.hub_id, i + 1, "hub"))]
        path = out / f"{info.folder.replace('*', config or '')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.select(usable).to_parquet(path)
        left_out = len(rows) - len(usable)
        lines.append(f"{path}: {len(usable)} rows" + (f", {left_out} without a usable key left out" if left_out else ""))
    return lines


def fetch_text(name: str, out: Path) -> str:
    """Write one general text below ``out``; returns a line: its path and its documents."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = load_texts(name, "hub")
    path = out / f"{TEXTS[name].folders[0]}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": documents}), path)
    return f"{path}: {len(documents)} documents"


def is_usable(task, row: Row) -> bool:
    """Whether a local copy of the row would load; only CodeMMLU has rows that would not."""
    return task.name != "code_mmlu" or task.make_doc(row) is not None


def main(argv: list[str] | None = None) -> int:
    """Fetch the data sets named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--text", nargs="*", choices=tuple(TEXTS), default=(), help="general text for --calib, besides the data sets")
    args = parser.parse_args(argv)
    for name in args.dataset:
        print("\n".join(fetch(name, args.folder)))
    for name in args.text:
        print(fetch_text(name, args.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
