"""Read the inputs of a network that the options of a command name."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastrun.graph.core.errors import InputError
from fastrun.options import preparation

if TYPE_CHECKING:
    from fastrun.graph.core.model import Array
    from fastrun.graph.core.sizes import Sizes


def read_inputs(shapes: Mapping[str, Sizes | None], arguments: Namespace) -> dict[str, Array]:
    """The arrays for the inputs, each from its own file or all from one .npz file."""
    found: dict[str, Array] = {}
    for text in arguments.input:
        known = ", ".join(shapes)
        name, separator, file = text.partition("=")
        if separator and not Path(text).exists():
            if name not in shapes:
                raise InputError(f"there is no input {name!r}: the network's inputs are {known}")
        elif text.endswith(".npz"):
            found |= _archive(Path(text))
            continue
        elif len(shapes) == 1:
            name, file = known, text
        else:
            raise InputError(f"{text}: name the input, as in NAME={text}; the inputs are {known}")
        found[name] = _array(Path(file), shapes[name], arguments)
    return found


def _array(path: Path, sizes: Sizes | None, arguments: Namespace) -> Array:
    import numpy as np

    if path.suffix == ".npy":
        try:
            loaded: Array = np.load(path)
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: not an array: {error}") from None
        return loaded
    from fastrun.tuner.networks.pictures import read_picture

    return read_picture(path, sizes, preparation(arguments))


def _archive(path: Path) -> dict[str, Array]:
    import numpy as np

    try:
        with np.load(path) as archive:
            return dict(archive)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an archive of arrays: {error}") from None
