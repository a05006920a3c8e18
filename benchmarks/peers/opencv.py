"""OpenCV's module for networks, with the engine that it chooses itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from fastrun.benchmarks.peers import Array, LoadError, first_line

title = "OpenCV"
packages = ("cv2",)


def load(model: onnx.ModelProto, threads: int, inner: bool = False) -> Session:
    import cv2

    cv2.setNumThreads(threads)
    try:
        net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    except cv2.error as error:
        raise LoadError(first_line(error)) from None
    return Session(net, [v.name for v in model.graph.output])


class Session:
    """A network that gets its inputs before every run, as its users give them."""

    def __init__(self, net: Any, outputs: list[str]) -> None:
        self._net, self._outputs = net, outputs

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        import cv2

        self._bound = {name: np.ascontiguousarray(x) for name, x in inputs.items()}
        try:
            return [np.array(y, np.float32) for y in self._forward()]
        except cv2.error as error:
            raise LoadError(first_line(error)) from None

    def call(self) -> None:
        self._forward()

    def _forward(self) -> list[Array]:
        for name, x in self._bound.items():
            self._net.setInput(x, name)
        found: list[Array] = self._net.forward(self._outputs)
        return found
