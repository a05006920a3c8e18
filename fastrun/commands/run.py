"""Run a network once on arrays or pictures."""

from __future__ import annotations

import json
import math
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrun.graph.core.errors import InputError
from fastrun.inputs import read_inputs
from fastrun.kernels.core.whole_file import whole_file
from fastrun.options import count, new_file, pictures
from fastrun.options import network as network_options
from fastrun.tuner.records.units import duration, plural, significant

if TYPE_CHECKING:
    from fastrun.graph.core.model import Array, Shape


def options(parser: ArgumentParser) -> None:
    network_options(parser)
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="FILE",
        help="an array (.npy) or a picture. For one of several inputs: NAME=FILE. For all inputs "
        "together: a file of named arrays (.npz)",
    )
    parser.add_argument(
        "--output", type=new_file, metavar="FILE", help="write the outputs to FILE: .npy or .npz"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="names of the classes: a text file with a line for each, or JSON, a list or a "
        "dictionary by number (networks with published weights know theirs)",
    )
    parser.add_argument(
        "--top",
        type=count,
        default=5,
        metavar="N",
        help="number of classes to print, highest scores first (default 5)",
    )
    pictures(parser)


def run(arguments: Namespace) -> int:
    """Load a network, run it on the inputs, print what the outputs are."""
    from fastrun.loading import opened, remarks

    names = _names(arguments)
    with remarks():
        any_size = opened(arguments)
        inputs = read_inputs(any_size.inputs, arguments)
        shapes = {name: x.shape for name, x in inputs.items() if name in any_size.inputs}
        network = any_size.at(shapes)
    _check_output(arguments.output, len(network.outputs))
    if arguments.labels:
        _check_labels(arguments.labels, len(names), network.outputs.values())
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
        if value.size == max(value.shape, default=0) > 1 and value.dtype == "float32":
            _print_top(value.reshape(-1), arguments.top, names)
    if arguments.output:
        _write(arguments.output, outputs)
    return 0


def _check_output(path: Path | None, outputs: int) -> None:
    if path and path.suffix not in (".npy", ".npz"):
        raise InputError(f"no format for {path}: its name must end in .npy or .npz")
    if path and path.suffix == ".npy" and outputs != 1:
        raise InputError(f"{path}: the name must end in .npz, as the network has {outputs} outputs")


def _check_labels(path: Path, names: int, shapes: Iterable[Shape | None]) -> None:
    """Refuse, before anything runs, names of which there are not as many as of classes."""
    known = [shape for shape in shapes if shape]
    if known and not any(names in (math.prod(shape), *shape) for shape in known):
        sizes = " and ".join("x".join(map(str, shape)) for shape in known)
        raise InputError(f"{path} has {plural(names, 'name')} of classes, the outputs have {sizes}")


def _write(path: Path, outputs: Mapping[str, Array]) -> None:
    import numpy as np

    with whole_file(path) as file:
        if path.suffix == ".npy":
            np.save(file, next(iter(outputs.values())))
        else:
            np.savez(file, allow_pickle=False, **outputs)


def _names(arguments: Namespace) -> Sequence[str]:
    """The names of the classes; none if they are not known."""
    from fastrun.graph.zoo.published import labels

    if arguments.labels is None:
        return labels(arguments.model)
    path: Path = arguments.labels
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return text.splitlines()
        found = json.loads(text)
        if isinstance(found, dict):
            found = [found[str(n)] for n in range(len(found))]
        # ImageNet's usual file has [synset, name] for each number.
        return [x if isinstance(x, str) else ", ".join(map(str, x)) for x in found]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: no list of names: {error}") from None


def _print_top(scores: Array, count: int, names: Sequence[str]) -> None:
    """Print the classes with the highest scores, and probabilities: the scores or their softmax."""
    import numpy as np

    from fastrun.tuner.terminal.display import grid, screen

    values = scores.astype(np.float64)
    shares = np.exp(values - values.max())
    already = values.min() >= 0 and abs(values.sum() - 1) < 1e-3
    shares = values if already else shares / shares.sum()
    best = np.argsort(-values, kind="stable")[:count]
    told = len(names) == len(scores)
    rows = [
        (str(i), *([names[i]] if told else []), significant(values[i]), significant(shares[i]))
        for i in best
    ]
    grid(screen(), ("class>", *(["name"] if told else []), "score>", "probability>"), rows)
