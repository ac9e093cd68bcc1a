"""Tasks of lm-evaluation-harness asked by this engine: its prompts and its grading, our batches, samples, statistics.

    library.py    the package: its tasks by name, what of them can be asked here, and one of them loaded
    loaded.py     a loaded task: its rows as documents, and its prompts
    metrics.py    what it measures, and its judgement of an answer
    requests.py   prompts and answers as the tokens that its own model class would see
"""
