"""Names for programs, known before their text is written.

A generator is a function of its arguments. So a program is named by them, by the sources of this
package, and by the versions of what these call. The object cache finds code by this name, where
writing the text only to hash it took half of the time of a load.

A program has no name where it could be wrong: if a source file changed after this process began to
import the package, or an argument is of a class of another package.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from fastrun.kernels.core import IMPORTED
from fastrun.kernels.core.program import Program

P = ParamSpec("P")

_PACKAGE = "fastrun.kernels."
_FOLDER = Path(__file__).resolve().parents[1]

# Seconds that a file must be older than this process: clocks of file systems are coarse.
_MARGIN = 1.0


def identified(write: Callable[P, Program]) -> Callable[P, Program]:
    """Mark a generator of this package, whose programs depend on its arguments alone."""

    @functools.wraps(write)
    def named(*args: P.args, **kwargs: P.kwargs) -> Program:
        return replace(write(*args, **kwargs), key=key_of(write, *args, *sorted(kwargs.items())))

    return named


def key_of(write: Callable[..., Any], *arguments: object) -> str:
    """The name of what a generator writes for these arguments; "" if it has none."""
    sources = _sources()
    if not sources or not write.__module__.startswith(_PACKAGE):
        return ""
    words = [sources, write.__module__, write.__qualname__]
    try:
        _describe(arguments, words)
    except TypeError:
        return ""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def source_hash(folder: Path) -> str:
    """SHA-256 of all Python files of a folder and of their names."""
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    return sorted(folder.rglob("*.py"))


@functools.cache
def _sources() -> str:
    """What generators consist of; "" if this process may have imported something else."""
    found = source_hash(_FOLDER)
    times = (path.stat() for path in _files(_FOLDER))
    if max(max(t.st_mtime, t.st_ctime) for t in times) > IMPORTED - _MARGIN:
        return ""
    return f"{found} python {platform.python_version()} numpy {np.__version__}"


def _describe(value: object, words: list[str]) -> None:
    """Append a text that differs for any two values that may give different programs.

    Raises:
        TypeError: there is no such text.
    """
    kind: Any = type(value)
    if value is None or kind in (bool, int, float, str):
        words.append(repr(value))
    elif kind in (tuple, list):
        assert isinstance(value, tuple | list)
        words.append(f"{kind.__name__} {len(value)}")
        for item in value:
            _describe(item, words)
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        words += [f"{value.dtype} {value.shape}", value.tobytes().hex()]
    elif (names := _field_names(kind)) is not None:
        words.append(f"{kind.__module__}.{kind.__qualname__}")
        for name in names:
            _describe(getattr(value, name), words)
    else:
        raise TypeError(f"{kind} cannot be described")


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """The fields of a dataclass whose methods are all of this package, else None."""
    ours = all(x is object or x.__module__.startswith(_PACKAGE) for x in kind.__mro__)
    return tuple(f.name for f in fields(kind)) if ours and is_dataclass(kind) else None
