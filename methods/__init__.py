"""Methods, one file each; a new file here registers itself.  Imports ``core``, ``streams`` and ``quantization`` only.

A file whose import fails stops the program: a method that vanishes from a table in silence is worse than no table.
"""

import importlib
import pkgutil

import quantization  # noqa: F401  (registers quantizers and allocators)

for _module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
    importlib.import_module(f"{__name__}.{_module}")
