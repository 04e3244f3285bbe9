"""Nested tables to dataclasses and back to single settings: every key, type and range checked against the annotations.

Understood are texts, whole numbers, numbers, switches, ``Literal``, ``Annotated`` with a ``Range``, tuples of these, nested dataclasses,
``X | None`` for what may be left unset, and a union of dataclasses, told apart by their ``kind``.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from unveil.config import Range
from unveil.errors import UserError, nearest


def override(tree: dict[str, Any], hint: Any, key: str, value: Any) -> None:
    """Put ``value`` at ``key`` (``training.steps``, ``data.sources.0.path``) of a recipe's whole tree."""
    node: Any = tree
    among: Any = None
    *sections, last = key.split(".")
    for part in sections:
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise UserError(f"--{key}", f"no item {part!r}", f"give a number below {len(node)}")
            node = node[int(part)]
            continue
        if part not in node and dataclasses.is_dataclass(hints(hint).get(part)):
            node[part] = {}  # its defaults, where another kind was chosen
        if part not in node:
            raise UserError(f"--{key}", f"no section {part!r}", nearest(part, [k for k, v in tree.items() if isinstance(v, dict)]))
        node, among = node[part], hints(hint)[part]
        hint = get_args(among)[0] if get_origin(among) is tuple else chosen(among, node)
        if not isinstance(node, dict | list):
            raise UserError(f"--{key}", f"{part!r} is a value, not a section", "leave out what follows it")
    if isinstance(node, list):
        raise UserError(f"--{key}", f"{sections[-1]!r} is a list", f"name an item: --{'.'.join(sections)}.0.{last}")
    if last == "kind" and isinstance(among, UnionType) and value != node.get("kind"):
        node.clear()  # another kind has settings of its own
        hint = chosen(among, {"kind": value}, ".".join(sections))
    wanted = chosen(hints(hint).get(last), value)
    node[last] = _value(value, wanted) if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


def _value(text: str, wanted: Any) -> Any:
    """``text`` as TOML; as it stands where that fails or a text is wanted; a lone text is a list of one where a list is."""
    try:
        value = text if wanted is str or get_origin(wanted) is Literal else tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return [value] if get_origin(wanted) is tuple and isinstance(value, str) else value


def hints(cls: Any) -> dict[str, Any]:
    """The annotations of a dataclass by field."""
    return get_type_hints(cls, include_extras=True)


def chosen(hint: Any, value: Any, key: str = "") -> Any:
    """Of a union, the member that ``value`` is to become: what it is beside None, or the dataclass of the ``kind`` that it names."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    members = [member for member in get_args(hint) if member is not NoneType]
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    named = {field.default: m for m in members if dataclasses.is_dataclass(m) for field in dataclasses.fields(m) if field.name == "kind"}
    if kind is not None and named and kind not in named:
        raise UserError(join(key, "kind"), f"got {kind!r}", nearest(str(kind), map(str, named)))
    return named.get(kind, members[0])


def build(cls: Any, table: Any, key: str) -> Any:
    """The dataclass ``cls`` from a table found at ``key``. Raises UserError for an unknown key and a value of the wrong type."""
    if not isinstance(table, dict):
        raise UserError(key, f"got {table!r}, wanted a table of settings", f"write [{key}] above them")
    known = hints(cls)
    for name in table:
        if name not in known:
            raise UserError(join(key, name), "no such setting", nearest(name, known))
    return cls(**{name: _convert(known[name], value, join(key, name)) for name, value in table.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    hint = chosen(hint, value, key)
    origin = get_origin(hint)
    if origin is Annotated:
        return _convert(get_args(hint)[0], value, key)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(key, value, "a list")
        return tuple(_convert(get_args(hint)[0], item, join(key, str(i))) for i, item in enumerate(value))
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(key, f"got {value!r}", nearest(str(value), get_args(hint)))
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise _wrong(key, value, {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[hint])
    return value


def _wrong(key: str, value: Any, wanted: str) -> UserError:
    return UserError(key, f"got {value!r}", f"give {wanted}")


def check_ranges(section: Any, key: str) -> None:
    """Raise a UserError for the first number of a dataclass, however deep, that is outside its range."""
    for name, hint in hints(type(section)).items():
        value, at = getattr(section, name), join(key, name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, at)
        elif value is not None and get_origin(chosen(hint, value)) is Annotated:
            _in_range(value, get_args(chosen(hint, value))[1], at)
        elif isinstance(value, tuple):
            item_hint = get_args(hint)[0]
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    check_ranges(item, join(at, str(i)))
                elif get_origin(item_hint) is Annotated:
                    _in_range(item, get_args(item_hint)[1], join(at, str(i)))


def _in_range(value: float, wanted: Range, key: str) -> None:
    low, high, is_open = wanted
    if math.isfinite(value) and low <= value <= high and not (is_open and value == low):
        return
    start = f"a number above {low:g}" if is_open else f"at least {low:g}"
    raise UserError(key, f"got {value}", f"give {start}" + (f" and at most {high:g}" if math.isfinite(high) else ""))


def join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
