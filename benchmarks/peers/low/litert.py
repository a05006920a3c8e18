"""LiteRT (TensorFlow Lite) with XNNPACK: weights and activations in int8, per channel.

The network becomes a module of PyTorch, which LiteRT's converter reads; its quantiser calibrates.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastrun.benchmarks.peers import Array, LoadError, first_line, shapes
from fastrun.benchmarks.peers.low.original import Original
from fastrun.benchmarks.peers.torch import Script
from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Node
from fastrun.graph.core.ops import Conv
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise

packages = ("ai_edge_litert", "ai_edge_quantizer", "litert_torch", "torch")

_ACTIVATIONS = {"": "{}", "relu": "torch.relu({})"} | {
    name: f"torch.nn.functional.{name}({{}})"
    for name in ("relu6", "hardswish", "sigmoid", "hardsigmoid", "silu", "gelu")
}


def load(original: Original, threads: int) -> Session:
    folder = original.made("litert", lambda folder: _convert(original, folder))
    return Session(folder / "int8.tflite", list(shapes(original.model)), threads)


class Session:
    """An interpreter whose input stays in place.

    Inputs and outputs are int8; `run` converts them, `call` leaves that out.
    """

    def __init__(self, path: Path, inputs: list[str], threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._inputs = inputs
        self._interpreter = Interpreter(str(path), num_threads=threads)
        self._interpreter.allocate_tensors()

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        places = self._interpreter.get_input_details()
        for place, name in zip(places, self._inputs, strict=True):
            scale, zero = place["quantization"]
            stored = np.rint(inputs[name] / scale) + zero
            self._interpreter.set_tensor(
                place["index"], stored.clip(-128, 127).astype(place["dtype"])
            )
        self.call()
        return [self._result(place) for place in self._interpreter.get_output_details()]

    def call(self) -> None:
        self._interpreter.invoke()

    def _result(self, place: Mapping[str, Any]) -> Array:
        scale, zero = place["quantization"]
        stored = self._interpreter.get_tensor(place["index"])
        found: Array = ((stored.astype(np.float32) - zero) * scale).astype(np.float32)
        return found


class _Plain(Script):
    """The network as a Python function of PyTorch's plain operators."""

    def _conv(self, node: Node, op: Conv) -> str:
        x, weights = self._names[node.inputs[0]], self._keep(self._constant(node.inputs[1]))
        bias = self._keep(self._constant(node.inputs[2])) if node.input(2) else "None"
        top, left, bottom, right = op.padding
        if any(op.padding):
            x = f"torch.nn.functional.pad({x}, {[left, right, top, bottom]})"
        geometry = f"{list(op.stride)}, 0, {list(op.dilation)}, {op.groups}"
        value = f"torch.nn.functional.conv2d({x}, {weights}, {bias}, {geometry})"
        if node.input(3):
            value = f"({value} + {self._names[node.inputs[3]]})"
        if op.activation not in _ACTIVATIONS:
            raise LoadError(f"node {node.label}: {op.activation} is not supported here")
        return _ACTIVATIONS[op.activation].format(value)

    def plain(self) -> Any:
        """A module that PyTorch can export."""
        import torch

        names: dict[str, Any] = {"torch": torch}
        exec(self.text, names)
        module = type("Network", (torch.nn.Module,), {"forward": names["forward"]})()
        for name, tensor in self._weights.items():
            module.register_buffer(name, tensor)
        return module.eval()


def _convert(original: Original, folder: Path) -> None:
    with _quiet():
        import litert_torch
        import torch
        from ai_edge_quantizer import quantizer, recipe

        try:
            module = _Plain(optimise(import_onnx(original.model))).plain()
            samples = tuple(torch.from_numpy(np.array(x)) for x in original.calibration[0].values())
            litert_torch.convert(module, samples).export(str(folder / "float32.tflite"))
            made = quantizer.Quantizer(str(folder / "float32.tflite"))
            made.load_quantization_recipe(recipe.static_wi8_ai8())
            feeds = [_named(x) for x in original.calibration]
            found = made.calibrate({"serving_default": feeds})
            made.quantize(found).export_model(str(folder / "int8.tflite"))
        except (GraphError, RuntimeError, ValueError) as error:
            raise LoadError(first_line(error)) from None
    (folder / "float32.tflite").unlink()


def _named(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs by the names that LiteRT's converter gives them."""
    return {f"args_{i}": x for i, x in enumerate(feeds.values())}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter says of its progress."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
