"""Methods: one file each, found by itself.  Imports ``core`` and ``quantization``, never ``evaluation`` or ``harness``.

Adding a file to this folder registers it; a file whose import fails stops the program with its name,
because a method that vanishes from a table in silence is worse than no table.
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path

import quantization  # noqa: F401  (registers quantizers and allocators)
from core.errors import UserError

for _found in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
    importlib.import_module(f"{__name__}.{_found}")


def load_plugin(path: str) -> None:
    """Register the scorers and methods of a file outside the repository (``--plugin my_scorer.py``)."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"plugin {path!r} is not a file; pass the path of a Python file that registers a scorer or method")
    spec = importlib.util.spec_from_file_location(f"plugin_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises is the user's to mend, in one sentence
        raise UserError(f"plugin {path!r} does not load: {type(error).__name__}: {error}") from error
