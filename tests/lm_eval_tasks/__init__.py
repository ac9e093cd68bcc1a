"""Tasks of lm-evaluation-harness over the rows of the shared folder, prompts as those of our own tasks."""

from pathlib import Path

HERE = Path(__file__).parent
OURS = {"t_mmlu_abstract_algebra": "mmlu", "t_mmlu_anatomy": "mmlu", "t_hellaswag": "hellaswag", "t_piqa": "piqa",
        "t_arc_challenge": "arc_challenge", "t_lambada_openai": "lambada_openai", "t_gsm8k": "gsm8k",
        "t_wikitext": None}
GOLDEN = HERE.parent / "golden" / "lm_eval.jsonl.gz"
ROLLING_LENGTH = 1024  # tokens of a window of t_wikitext; the model's own 8192 would take one window a page


def filled(folder: Path, data: Path) -> Path:
    """Copy the tasks into a folder, the rows' place filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*HERE.glob("*.yaml"), HERE / "rows.py"):
        (folder / file.name).write_text(file.read_text().replace("DATA/", f"{data}/"))
    return folder
