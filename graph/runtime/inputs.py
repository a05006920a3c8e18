"""Checks the arrays that are given to a network."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

from fastrun.graph.core.errors import InputError
from fastrun.graph.core.lookups import Indices
from fastrun.graph.core.model import Array, Shape
from fastrun.graph.core.sizes import Sizes, fits, sizes_text


def check_arrays(
    inputs: Mapping[str, Any], wanted: Mapping[str, Sizes | None], unread: Container[str]
) -> None:
    """Check that there is an array for every input that is `wanted`, and none for an unknown one.

    Raises:
        InputError: an input is missing, unknown or not an array.
    """
    for name in inputs:
        if name not in wanted and name not in unread:
            raise unknown_input(name, wanted)
    for name, sizes in wanted.items():
        if name not in inputs:
            raise InputError(f"input {name!r} is missing: give an array of {sizes_text(sizes)}")
        if not isinstance(inputs[name], np.ndarray):
            kind = type(inputs[name]).__name__
            raise InputError(f"input {name!r} is a {kind}, not a numpy array")


def by_name(inputs: Any, wanted: Iterable[str]) -> Mapping[str, Any]:
    """Inputs by name; one that is not in a mapping is the network's only input.

    Arrays of other libraries become NumPy's, and those of the other byte order this machine's.

    Raises:
        InputError: the network has several.
    """
    if isinstance(inputs, Mapping):
        return {name: _as_array(x) for name, x in inputs.items()}
    names = [*wanted]
    if len(names) != 1:
        raise InputError(
            f"the network has {len(names)} inputs: give a dictionary of arrays by the names "
            f"{', '.join(names)}"
        )
    return {names[0]: _as_array(inputs if hasattr(inputs, "__array__") else np.asarray(inputs))}


def _as_array(x: Any) -> Any:
    """An array as NumPy's in this machine's byte order; anything else as it is."""
    if not isinstance(x, np.ndarray) and hasattr(x, "__array__"):
        x = np.asarray(x)
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        return x.astype(x.dtype.newbyteorder("="))
    return x


def only_or_all(outputs: dict[str, Any]) -> Any:
    """The output of a network that has one; else all of them by name."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def check_shape(name: str, shape: Shape, sizes: Sizes | None) -> None:
    """Check that an input may have a shape; it may have any if its `sizes` are not known.

    Raises:
        InputError: it may not.
    """
    if not fits(shape, sizes):
        advice = _advice(shape, sizes)
        raise InputError(f"input {name!r} has shape {shape} instead of {sizes_text(sizes)}{advice}")


def check_indices(name: str, values: Array, wanted: Indices) -> None:
    """Check that an input has no number that is outside of a table.

    Raises:
        InputError: it has.
    """
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < wanted.low or high > wanted.high:
        wrong = low if low < wanted.low else high
        raise InputError(
            f"input {name!r} has the index {wrong}: node {wanted.node} has entries from "
            f"{wanted.low} to {wanted.high}"
        )


def _advice(shape: Shape, sizes: Sizes | None) -> str:
    """What to do with an array whose shape is one of the usual mistakes."""
    whole = (1, *shape)
    if len(shape) == 4 and fits((shape[0], shape[3], shape[1], shape[2]), sizes):
        return ": its channels come last, give x.transpose(0, 3, 1, 2)"
    if len(shape) == 3 and fits(whole, sizes):
        return ": it has no batch axis, give x[None]"
    if len(shape) == 3 and fits((1, shape[2], *shape[:2]), sizes):
        return ": it is a picture whose channels come last, give x.transpose(2, 0, 1)[None]"
    return ""


def unknown_input(name: str, known: Iterable[str]) -> InputError:
    """The error for an input that a network does not have."""
    return InputError(f"there is no input {name!r}: the network's inputs are {', '.join(known)}")
