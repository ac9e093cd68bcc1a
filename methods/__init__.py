"""Methods: one file each, found by itself.  Imports ``core`` and ``quantization``, never ``evaluation`` or ``harness``.

Adding a file to this folder registers it; a file whose import fails stops the program with its name,
because a method that vanishes from a table in silence is worse than no table.
"""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

import quantization  # noqa: F401  (registers quantizers and allocators)
from core.checkpoint import one_line
from core.errors import UserError
from core.registry import ALLOCATORS, DATASETS, METHODS, QUANTIZERS, SCORERS

for _found in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
    importlib.import_module(f"{__name__}.{_found}")


def load_plugin(path: str) -> None:
    """Register the scorers and methods of a file outside the repository (``--plugin my_scorer.py``)."""
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        what = "a .py file" if file.is_file() else "a file"
        raise UserError(f"plugin {path!r} is not {what}; pass the path of a Python file that registers a scorer or method")
    spec = importlib.util.spec_from_file_location(f"plugin_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    before, writes = _registered(), sys.dont_write_bytecode
    try:
        sys.dont_write_bytecode = True  # a user's folder is no place for our __pycache__
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises is the user's to mend, in one sentence
        raise UserError(f"plugin {path!r} does not load: {type(error).__name__}: {one_line(error)}; correct the file") from error
    finally:
        sys.dont_write_bytecode = writes
    if _registered() == before:
        raise UserError(f"plugin {path!r} registers nothing; it must call scorer, method, allocator, quantizer or register (docs/ADD_A_METHOD.md)")


def _registered() -> list[list[str]]:
    return [list(registry) for registry in (SCORERS, METHODS, ALLOCATORS, QUANTIZERS, DATASETS)]
