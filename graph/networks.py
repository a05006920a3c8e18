"""Decides which model a name or path means, and gives its graph."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from fastrun.graph import zoo
from fastrun.graph.core.errors import ModelFileError
from fastrun.graph.core.model import Graph
from fastrun.graph.frontend.file import SharedModel, Source, current, parse_model, read_model
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.zoo.published import PUBLISHED, published

# What exporters call a graph that nobody has named.
_NAMELESS = {
    "",
    *("main_graph", "torch_jit", "torch-jit-export", "tf2onnx", "paddle-onnx"),
    *("PaddlePaddle Graph in PIR mode", "PaddlePaddle Graph 0", "onnx_graph", "graph"),
}


def load_network(source: Source, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """The graph, not yet optimised, of a built-in network, an ONNX file, or an ONNX model.

    `shapes` gives or overrides the shapes of inputs. If a file has the name of a built-in
    network, the name means the network; write `./name` for the file.

    Raises:
        GraphError: as `import_onnx`. If there is neither a network nor a file of this name, the
            message lists similar names.
    """
    return import_onnx(find_model(source), shapes)


def find_model(source: Source) -> onnx.ModelProto | SharedModel:
    """The model that a name, a path, bytes or a model means, in an opset that the importer knows.

    Raises:
        GraphError: as `load_network`, as far as the file is concerned.
    """
    if isinstance(source, SharedModel):
        return replace(source, proto=current(source.proto))
    if isinstance(source, bytes):
        source = parse_model(source)
    elif not isinstance(source, onnx.ModelProto):
        if str(source) in zoo.NAMES:
            source = zoo.build(str(source))
        elif str(source) in PUBLISHED:
            source = published(str(source))
        elif Path(source).exists():
            path = Path(source)
            source = read_model(path)
            if source.graph.name in _NAMELESS:
                source.graph.name = path.stem
        else:
            raise ModelFileError(_no_such_model(str(source)))
    return current(source)


def _no_such_model(name: str) -> str:
    folder = Path(name).parent
    files = [str(path) for path in folder.glob("*.onnx")] if folder.is_dir() else []
    close = difflib.get_close_matches(name, [*zoo.NAMES, *PUBLISHED, *files], n=2)
    if close:
        return f"no network or file called {name!r}: did you mean {' or '.join(close)}?"
    known = ", ".join([*zoo.NAMES, *PUBLISHED])
    return f"no file called {name!r}; the built-in networks are {known}"
