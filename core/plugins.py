"""Plugins: a user's Python file that registers scorers, methods or data sets (``--plugin my_scorer.py``)."""

import importlib.util
import sys
from pathlib import Path

from core.digest import file_sha256
from core.errors import UserError, one_line
from core.registry import REGISTRIES
from core.settings import SETTINGS

_loaded: dict[Path, str] = {}  # the plugins of this process: file, sha256 of what was loaded


def load_plugin(path: str) -> None:
    """Register the scorers, methods and data sets of a file outside the repository.

    What it registers is keyed by the file's content too.  A second time does nothing: a notebook, or a run in one
    process, comes here again.  A file that has changed since is refused, not loaded in the old one's place: what took
    its functions from the registries would go on with the old text.  A file that fails leaves nothing registered.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        what = "a .py file" if file.is_file() else "a file"
        raise UserError(f"plugin {path!r} is not {what}; pass the path of a Python file that registers a scorer or "
                        "method")
    where, before = file.resolve(), [dict(registry._items) for registry in REGISTRIES]
    settings = dict(SETTINGS._items)
    try:
        text = file_sha256(file)
        if where not in _loaded:
            _execute(file)
    except (Exception, SystemExit) as error:  # whatever a user's file raises is the user's to mend, in one sentence
        for registry, items in zip(REGISTRIES, before):
            registry._items = items
        SETTINGS._items = settings
        raise UserError(f"plugin {path!r} does not load: {type(error).__name__}: {one_line(error)}; "
                        "correct the file") from error
    new = [(registry, name) for registry, items in zip(REGISTRIES, before) for name in registry if name not in items]
    if where not in _loaded and not new:
        raise UserError(f"plugin {path!r} registers nothing; it must call scorer, method, allocator, quantizer or "
                        "register (docs/ADD_A_METHOD.md)")
    for registry, name in new:
        registry.contents[name] = text
    if _loaded.setdefault(where, text) != text:
        raise UserError(f"plugin {path!r} has changed since this process loaded it; start the program (or the "
                        "notebook's kernel) again to use it")


def _execute(file: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"plugin_{file.stem}", file)
    module, writes = importlib.util.module_from_spec(spec), sys.dont_write_bytecode
    try:
        sys.dont_write_bytecode = True  # a user's folder is no place for our __pycache__
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
