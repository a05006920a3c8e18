"""`fastrun run`: one inference."""

from __future__ import annotations

import time
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastrun.commands.plan import loaded
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array
from fastrun.tuner.records.units import duration, plural, significant


def run(arguments: Namespace) -> int:
    """Load a network, run it on the inputs given, say what came out."""
    network = loaded(arguments)
    inputs = _inputs(network.inputs, arguments)
    _check_output(arguments.output, len(network.outputs))
    start = time.perf_counter()
    outputs = network.run(inputs)
    took = time.perf_counter() - start
    again = network.seconds()
    print(
        f"{arguments.model}, {plural(arguments.threads, 'thread')}: {duration(took)}, "
        f"then {duration(again)}"
    )
    for name, value in outputs.items():
        print(f"{name}: {'x'.join(map(str, value.shape)) or 'a number'}, {value.dtype}")
        if value.size == max(value.shape, default=0) > 1 and value.dtype == np.float32:
            _print_top(value.reshape(-1), arguments.top)
    if arguments.output:
        _write(arguments.output, outputs)
    return 0


def _inputs(shapes: Mapping[str, tuple[int, ...]], arguments: Namespace) -> dict[str, Array]:
    """The arrays for the inputs, each from a file of its own or all from an .npz."""
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
            raise InputError(f"{text}: for which input? write NAME={text}, NAME one of {known}")
        found[name] = _array(Path(file), shapes[name], arguments)
    return found


def _array(path: Path, shape: tuple[int, ...], arguments: Namespace) -> Array:
    if path.suffix == ".npy":
        try:
            loaded: Array = np.load(path)
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: not an array: {error}") from None
        return loaded
    from fastrun.tuner.networks.pictures import Preparation, read_picture

    return read_picture(path, shape, Preparation(arguments.crop, arguments.mean, arguments.std))


def _archive(path: Path) -> dict[str, Array]:
    try:
        with np.load(path) as archive:
            return dict(archive)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an archive of arrays: {error}") from None


def _check_output(path: Path | None, outputs: int) -> None:
    if path and path.suffix not in (".npy", ".npz"):
        raise InputError(f"no format for {path}: end its name in .npy or .npz")
    if path and path.suffix == ".npy" and outputs != 1:
        raise InputError(f"{path}: the network has {outputs} outputs: end the name in .npz")


def _write(path: Path, outputs: Mapping[str, Array]) -> None:
    if path.suffix == ".npy":
        np.save(path, next(iter(outputs.values())))
    else:
        np.savez(path, allow_pickle=False, **outputs)


def _print_top(scores: Array, count: int) -> None:
    """The classes of the highest scores, with probabilities by softmax unless they are that."""
    from fastrun.tuner.terminal.display import grid, screen

    values = scores.astype(np.float64)
    shares = np.exp(values - values.max())
    already = values.min() >= 0 and abs(values.sum() - 1) < 1e-3
    shares = values if already else shares / shares.sum()
    best = np.argsort(-values, kind="stable")[:count]
    rows = [(str(i), significant(values[i]), significant(shares[i])) for i in best]
    grid(screen(), ("class>", "score>", "probability>"), rows)
