"""Other inference engines behind one interface, each set up as its users run it.

Each file is one engine. All compute in float32 on a given number of threads.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[np.float32]

NAMES = ("ort", "openvino", "torch", "ncnn", "mnn", "opencv")


class LoadError(RuntimeError):
    """The engine cannot run this model. The message is one line."""


class Session(Protocol):
    """A model, loaded."""

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The model's outputs in its order and in NCHW. The inputs stay bound for `call`."""

    def call(self) -> None:
        """Compute again from the bound inputs, without copies and without results for Python."""


class Engine(Protocol):
    """The interface of the modules of this package."""

    @property
    def title(self) -> str:
        """The name of the engine to show."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The Python packages that it needs, as they are imported; the first has its version."""

    def load(self, model: onnx.ModelProto, threads: int, inner: bool = False) -> Session:
        """Prepare a model whose inputs have fixed shapes.

        `inner` says that the model is a part of a network. The rest of the network would pass
        tensors in the engine's favourite layout, so `call` does not convert layouts.

        Raises:
            LoadError: the engine cannot run the model.
        """


def engine(name: str) -> Engine:
    """The module of an engine of `NAMES`. The engine itself is not imported yet."""
    return cast(Engine, importlib.import_module(f"fastrun.benchmarks.peers.{name}"))


def version(name: str) -> str:
    """The installed version of an engine."""
    distributed = importlib.metadata.packages_distributions()[engine(name).packages[0]]
    return importlib.metadata.version(distributed[0])


def missing(name: str) -> str | None:
    """The reason why an engine cannot be used here; None if it can."""
    absent = [p for p in engine(name).packages if importlib.util.find_spec(p) is None]
    return f"{absent[0]} is not installed: pip install '.[peers]'" if absent else None


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The model's inputs without weights, and their shapes."""
    weights = {w.name for w in model.graph.initializer}
    return {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in model.graph.input
        if v.name not in weights
    }


def first_line(error: Any) -> str:
    """The first line of another library's error, shortened."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
