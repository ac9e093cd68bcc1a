"""JSON data as a dataclass: every field of the type that its annotation names, or an error that names the field."""

import types
import typing
from dataclasses import is_dataclass
from functools import cache

WORDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number",
         float: "a number", type(None): "null"}


def typed(kind, value, where: str = "the file"):
    """``value``, as ``json.loads`` gave it, as the type ``kind``; ``where`` names it in the message.

    Dataclasses are built from objects, ``dict[str, X]`` item by item, and null passes for ``X | None``; names that
    ``kind`` does not have are left out.  Raises TypeError where a value is of another type or a field without a default
    is missing.
    """
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else typed(typing.get_args(kind)[0], value, where)
    if is_dataclass(kind):
        _check(dict, value, where)
        return kind(**{name: typed(hint, value[name], name) for name, hint in _hints(kind).items() if name in value})
    if origin is dict:
        _check(dict, value, where)
        item = typing.get_args(kind)[1]
        return {name: typed(item, of, f"{where}[{name!r}]") for name, of in value.items()}
    _check(kind, value, where)
    return value


@cache
def _hints(kind: type) -> dict[str, object]:
    return typing.get_type_hints(kind)


def _check(kind: type, value, where: str) -> None:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        given, wanted = WORDS.get(type(value), type(value).__name__), WORDS.get(kind, kind.__name__)
        raise TypeError(f"{where} is {given}, not {wanted}")
