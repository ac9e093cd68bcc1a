"""A few rows of every source's task in the hub's schemas, for tests that need no real data."""

import json
from pathlib import Path

CHOICES = ["red", "green", "blue", "grey"]
FILES = {
    "mmlu/test": [{"question": f"{s} q{i} ", "subject": s, "choices": [f"{c}{i}" for c in CHOICES], "answer": i % 4}
                  for s in ("virology", "astronomy", "philosophy") for i in range(12)],
    "mmlu/dev": [{"question": f"d{i}", "subject": s, "choices": CHOICES, "answer": 1}
                 for s in ("virology", "astronomy", "philosophy") for i in range(5)],
    "gsm8k/test": [{"question": f"What is {i} + 1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
                   for i in range(12)],
    "gsm8k/train": [{"question": f"What is {i} + 2?", "answer": f"It is {i + 2}.\n#### {i + 2}"} for i in range(30)],
    "hellaswag/validation": [{"ind": i, "activity_label": "Roofs", "ctx_a": f"A man {i}.", "ctx_b": "he",
                              "ctx": f"A man {i}. he", "endings": ["sits", "runs [title] on", "falls", "sings"],
                              "label": str(i % 4)} for i in range(20)],
    "piqa/validation": [{"goal": f"open a jar {i}", "sol1": "turn it", "sol2": "look at it", "label": i % 2}
                        for i in range(20)],
    "arc_easy/test": [{"id": f"a{i}", "question": f"why {i}", "choices": {"text": CHOICES, "label": [*"1234"]},
                       "answerKey": str(1 + i % 4)} for i in range(20)],
    "lambada_openai/test": [{"text": f"The {i} cats saw the dog"} for i in range(20)],
    "wikitext2/wikitext-2-raw-v1/test": [{"text": text} for text in ["", " = Cats = ", "Cats sleep. " * 30] * 3],
    "wikitext2/wikitext-2-raw-v1/train": [{"text": "Dogs sleep all day long. " * 20}] * 3,
    "c4_sample/validation": [{"text": "A page of the web. " * 20}] * 3,
}


def write_rows(root: Path) -> Path:
    """Put them below ``root`` as --data_dir reads them."""
    for name, rows in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
