"""Other inference engines behind one interface, each set up the way its users run it.

A file here is an engine. All compute in float32 on a given number of threads.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[np.float32]

NAMES = ("ort", "openvino", "torch", "ncnn", "mnn")


class LoadError(RuntimeError):
    """The engine cannot run this model. The message is one line."""


class Session(Protocol):
    """A model, loaded."""

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The model's outputs in its own order and layout (NCHW); binds the inputs for `call`."""

    def call(self) -> None:
        """Compute again from the bound inputs: no copy, and no result that Python sees."""


class Engine(Protocol):
    """What a module of this package provides."""

    @property
    def title(self) -> str:
        """The engine's own name."""

    def version(self) -> str:
        """The installed version."""

    def available(self) -> str | None:
        """Why the engine cannot be used here, or None."""

    def load(self, model: onnx.ModelProto, threads: int, inner: bool = False) -> Session:
        """Prepare a model whose inputs have fixed shapes.

        `inner` says that the model is a piece of a network: what surrounds it would hand over
        tensors in the engine's favourite layout, so converting them is no part of `call`.

        Raises:
            LoadError: the engine cannot run the model.
        """


def engine(name: str) -> Engine:
    """The engine called `name`, one of `NAMES`; importing it does not import the engine itself."""
    return cast(Engine, importlib.import_module(f"fastrun.benchmarks.peers.{name}"))


def missing(*packages: str) -> str | None:
    """Which of these packages is not installed, as a reason; None if all are."""
    absent = [p for p in packages if importlib.util.find_spec(p) is None]
    return f"{absent[0]} is not installed: pip install '.[peers]'" if absent else None


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The model's inputs, weights excluded, and their shapes."""
    weights = {w.name for w in model.graph.initializer}
    return {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in model.graph.input
        if v.name not in weights
    }


def first_line(error: Any) -> str:
    """What another library says, as far as it fits into a line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
