"""Reads calibration data: inputs like those in use, from pictures or arrays.

The first axis of an array counts samples. A network with a fixed batch of n takes n samples at a
time; the last batch is filled up with the last sample.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array, Graph, Shape
from fastrun.tuner.networks.pictures import Preparation, read_picture

Batch = dict[str, Array]
Source = str | Path | Mapping[str, Array]

_NAME = "calibration data"


def calibration_data(graph: Graph, source: Source, pictures: Preparation, most: int) -> list[Batch]:
    """The batches of at most `most` samples, which are spread evenly over those that there are.

    `source` is as for `read_samples`.

    Raises:
        As `read_samples`.
    """
    found = read_samples(graph, source, pictures, most)
    return list(batches(graph, {x: a[_spread(len(a), most)] for x, a in found.items()}))


def read_samples(graph: Graph, source: Source, pictures: Preparation, most: int) -> Batch:
    """All samples, joined, or those of `most` files of a folder, which are spread evenly.

    `source` is a folder of pictures and of .npy and .npz files, subfolders included; a .npz file;
    or arrays by the inputs' names, as in a .npz file. Pictures and .npy files are for networks of
    one input.

    Raises:
        InputError: there are no data, they do not fit the inputs, or a value is not finite.
        OSError: a file cannot be read.
    """
    if isinstance(source, Mapping):
        parts = [_checked(graph, source, _NAME)]
    else:
        parts = list(_parts(graph, Path(source), pictures, most))
    if not parts:
        raise InputError(f"{source}: there are no calibration data in this folder")
    return {x: np.concatenate([part[x] for part in parts]) for x in graph.inputs}


def batches(graph: Graph, samples: Batch) -> Iterator[Batch]:
    """The samples in batches of the network's size; the last one is filled up.

    Raises:
        InputError: the inputs have batches of different sizes.
    """
    sizes = {shape[0] for shape in _shapes(graph).values()}
    if len(sizes) > 1:
        raise InputError(f"the inputs have batches of different sizes, {sorted(sizes)}")
    [size] = sizes
    for first in range(0, len(next(iter(samples.values()))), size):
        part = {name: values[first : first + size] for name, values in samples.items()}
        missing = size - len(next(iter(part.values())))
        filled = {x: np.concatenate([a, np.repeat(a[-1:], missing, 0)]) for x, a in part.items()}
        yield {name: np.ascontiguousarray(values) for name, values in filled.items()}


def _shapes(graph: Graph) -> dict[str, Shape]:
    return {name: graph.shape(name) for name in graph.inputs}


def _parts(graph: Graph, source: Path, pictures: Preparation, most: int) -> Iterator[Batch]:
    """The samples of each file."""
    if not source.exists():
        raise InputError(f"{source}: there is no such folder or file of calibration data")
    if not source.is_dir():
        if source.suffix != ".npz":
            raise InputError(f"{source}: calibration data are a folder, or a file of arrays (.npz)")
        yield _checked(graph, _archive(source), str(source))
        return
    paths = [p for p in sorted(source.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    for index in _spread(len(paths), most):
        path = paths[index]
        if path.suffix == ".npz":
            yield _checked(graph, _archive(path), str(path))
            continue
        if len(graph.inputs) > 1:
            raise InputError(
                f"{path}: the network has the inputs {', '.join(graph.inputs)}: give their arrays "
                "together in .npz files"
            )
        [(name, shape)] = _shapes(graph).items()
        values = _array(path) if path.suffix == ".npy" else _picture(path, shape, pictures)
        yield _checked(graph, {name: values}, str(path))


def _picture(path: Path, shape: Shape, how: Preparation) -> Array:
    return read_picture(path, (1, *shape[1:]), how)


def _array(path: Path) -> Array:
    try:
        values: Array = np.load(path)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not an array: {error}") from None
    return values


def _archive(path: Path) -> dict[str, Array]:
    try:
        with np.load(path) as archive:
            return dict(archive)
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an archive of arrays: {error}") from None


def _checked(graph: Graph, given: Mapping[str, Array], where: str) -> Batch:
    """The arrays as the network reads them, the same number of samples for every input."""
    shapes, known = _shapes(graph), ", ".join(graph.inputs)
    if unknown := [x for x in given if x not in shapes and x not in graph.unread]:
        raise InputError(f"{where}: there is no input {unknown[0]!r}: the inputs are {known}")
    if missing := [x for x in shapes if x not in given]:
        raise InputError(f"{where}: nothing for input {missing[0]!r}: the inputs are {known}")
    found: Batch = {}
    for name, shape in shapes.items():
        values = np.asarray(given[name])
        if not shape or values.shape[1:] != shape[1:] or values.ndim != len(shape):
            wanted = "x".join(map(str, ("N", *shape[1:])))
            raise InputError(
                f"{where}: the array for {name!r} has the shape {values.shape}: give {wanted}, "
                "for any number N of samples"
            )
        if not len(values):
            raise InputError(f"{where}: the array for {name!r} has no samples")
        if values.dtype.kind not in "fiub":
            raise InputError(f"{where}: the array for {name!r} has the type {values.dtype}")
        kind = graph.outside[name] if name in graph.whole else graph.tensor(name).dtype
        if kind.kind in "iub" and not np.can_cast(values.dtype, kind, "same_kind"):
            raise InputError(
                f"{where}: the array for {name!r} has the type {values.dtype}: give {kind}"
            )
        with np.errstate(over="ignore"):
            found[name] = values.astype(kind)
        if not np.isfinite(found[name]).all():
            raise InputError(f"{where}: the array for {name!r} has values that are not finite")
    counts = {name: len(values) for name, values in found.items()}
    if len({*counts.values()}) > 1:
        told = ", ".join(f"{count} for {name!r}" for name, count in counts.items())
        raise InputError(f"{where}: different numbers of samples: {told}")
    return found


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of `count` indices, at equal distances."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
