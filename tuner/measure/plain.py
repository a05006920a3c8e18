"""Answers of untrusted processes: JSON that is read by a type and refused if it does not fit.

A pickle could run code. Here types come from annotations: dataclasses, enumerations, paths, bytes,
tuples, lists, mappings, unions, and the types of JSON.
"""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import enum
import types
import typing
from pathlib import Path
from typing import Any


class PlainError(ValueError):
    """The data is not of the expected type."""


def to_plain(value: Any) -> Any:
    """The value in types of JSON."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, collections.abc.Mapping):
        return [[to_plain(key), to_plain(item)] for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: Any, data: Any) -> Any:
    """The value of type `kind` that `to_plain` was given.

    Raises:
        PlainError: the data is not of that type.
    """
    try:
        return _read(kind, data)
    except (TypeError, ValueError) as error:
        raise PlainError(f"no {getattr(kind, '__name__', kind)}: {error}"[:200]) from None


def _read(kind: Any, data: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_one_of(inner, data)
    if origin is collections.abc.Mapping:
        return {_read(inner[0], key): _read(inner[1], item) for key, item in _list(data)}
    if origin in (list, collections.abc.Sequence):
        found = [_read(inner[0], item) for item in _list(data)]
        return found if origin is list else tuple(found)
    if origin is tuple:
        if inner[1:] == (...,):
            return tuple(_read(inner[0], item) for item in _list(data))
        return tuple(_read(k, item) for k, item in zip(inner, _list(data), strict=True))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = {name: _read(hints[name], item) for name, item in _fields(kind, data)}
        return typing.cast(Any, kind)(**given)
    return _read_simple(kind, data)


def _read_simple(kind: Any, data: Any) -> Any:
    if kind in (None, type(None)):
        kind = type(None)
    elif issubclass(kind, enum.Enum):
        return kind(data)
    elif kind in (Path, bytes):
        text = _read(str, data)
        return Path(text) if kind is Path else base64.b64decode(text, validate=True)
    elif kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        raise PlainError(f"expected {kind.__name__}, got {data!r:.60}")
    return data


def _read_one_of(kinds: tuple[Any, ...], data: Any) -> Any:
    for kind in kinds:
        try:
            return _read(kind, data)
        except (TypeError, ValueError):
            continue
    raise PlainError(f"of no expected type: {data!r:.60}")


def _list(data: Any) -> list[Any]:
    if type(data) is not list:
        raise PlainError(f"expected a list, got {data!r:.60}")
    return data


def _fields(kind: Any, data: Any) -> collections.abc.Iterable[tuple[str, Any]]:
    names = {f.name for f in dataclasses.fields(kind)}
    if type(data) is not dict or data.keys() != names:
        raise PlainError(f"expected the fields of {kind.__name__}, got {data!r:.60}")
    return data.items()
