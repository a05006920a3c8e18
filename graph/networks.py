"""A network by its name, its file or its ONNX model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from fastrun.graph import zoo
from fastrun.graph.core.errors import ModelFileError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import DistinctProblem, to_tune
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise


def load_network(
    source: str | Path | onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> Graph:
    """The graph of a built-in network by name, an ONNX file, or an ONNX model; not optimised yet.

    `shapes` gives or overrides the shapes of inputs. A name that is both a network's and a
    file's is the network's; write `./name` for the file.

    Raises:
        GraphError: as `import_onnx`; for a name of no network and no file, says which are close.
    """
    if not isinstance(source, onnx.ModelProto):
        if str(source) in zoo.NAMES:
            source = zoo.build(str(source))
        elif not Path(source).exists():
            raise ModelFileError(_no_such_model(str(source)))
    return import_onnx(source, shapes)


def _no_such_model(name: str) -> str:
    folder = Path(name).parent
    files = [str(path) for path in folder.glob("*.onnx")] if folder.is_dir() else []
    close = difflib.get_close_matches(name, [*zoo.NAMES, *files], n=2)
    if close:
        return f"no network or file called {name!r}: did you mean {' or '.join(close)}?"
    return f"no file called {name!r}, and the networks built in are {', '.join(zoo.NAMES)}"


def network_problems(
    source: str | Path | onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> list[DistinctProblem]:
    """The convolutions left when `load_network(source, shapes)` is optimised.

    Raises:
        GraphError: the model cannot be read, a convolution cannot be expressed, or there is none.
    """
    return to_tune(optimise(load_network(source, shapes)))
