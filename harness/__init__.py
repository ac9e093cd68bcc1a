"""The harness: a grid in, results out.  Imports everything below it; nothing below imports it.

``grid.py`` says what is asked, ``presets.py`` its run types; ``cli/`` is the command line; ``jobs/`` runs the cells,
here or on a cluster; ``forecast/`` says before what will not fit; ``stages/`` are a cell's pipeline, each stage looked
up in ``store/`` first.
From Python: ``from harness import evaluate, quantize, score`` (harness/api.py).
"""

__all__ = ["evaluate", "quantize", "score"]


def __getattr__(name: str):
    """The three functions, imported at their first use: importing this package needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    from harness import api

    return getattr(api, name)
