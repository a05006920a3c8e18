"""OpenVINO: its CPU plugin with one stream for latency, restricted to float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fastrun.benchmarks.peers import Array, LoadError, first_line

title = "OpenVINO"
packages = ("openvino",)


def load(model: onnx.ModelProto, threads: int, inner: bool = False) -> Session:
    # Processors with bfloat16 instructions would use them otherwise.
    return compiled(read(model), threads, inner, {"INFERENCE_PRECISION_HINT": "f32"})


def read(model: onnx.ModelProto | Path) -> Any:
    """A model, or a file of OpenVINO's own format, as OpenVINO reads it.

    Raises:
        LoadError: it cannot.
    """
    import openvino as ov

    try:
        return ov.Core().read_model(model if isinstance(model, Path) else model.SerializeToString())
    except RuntimeError as error:
        raise LoadError(first_line(error)) from None


def compiled(
    model: Any, threads: int, inner: bool = False, more: Mapping[str, Any] | None = None
) -> Session:
    """A model of OpenVINO, set up for latency, with further options.

    Raises:
        LoadError: the plugin cannot compile it.
    """
    import openvino as ov

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # Pinning would move the threads of this process, which other engines use too.
        "ENABLE_CPU_PINNING": False,
        **(more or {}),
    }
    images = _images(model) if inner else []
    try:
        made = ov.Core().compile_model(_channels_last(model, images), "CPU", options)
    except RuntimeError as error:
        raise LoadError(first_line(error)) from None
    return Session(made, set(images))


class Session:
    """A compiled model and one request; `images` are the ports in NHWC."""

    def __init__(self, compiled: Any, images: set[str]) -> None:
        self._compiled, self._images = compiled, images
        self._request = compiled.create_infer_request()

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        import openvino as ov

        for port in self._compiled.inputs:
            array = inputs[port.any_name]
            if port.any_name in self._images:
                array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
            self._request.set_tensor(port, ov.Tensor(array))
        self.call()
        return [self._result(port) for port in self._compiled.outputs]

    def call(self) -> None:
        self._request.infer()

    def _result(self, port: Any) -> Array:
        array: Array = np.array(self._request.get_tensor(port).data)
        return array.transpose(0, 3, 1, 2) if port.any_name in self._images else array


def _images(model: Any) -> list[str]:
    """The ports of a layer's convolution that are faster in NHWC.

    OpenVINO lets a convolution write over the residual that it adds, and would then transpose its
    output a second time. So such an output stays in NCHW, which costs less.
    """
    ports = [*model.inputs, *(model.outputs if len(model.inputs) == 1 else ())]
    return [port.any_name for port in ports if len(port.get_partial_shape()) == 4]


def _channels_last(model: Any, images: list[str]) -> Any:
    """The model with these ports in NHWC."""
    import openvino as ov

    steps = ov.preprocess.PrePostProcessor(model)
    inputs = {port.any_name for port in model.inputs}
    for name in images:
        port = steps.input(name) if name in inputs else steps.output(name)
        port.tensor().set_layout(ov.Layout("NHWC"))
        port.model().set_layout(ov.Layout("NCHW"))
    return steps.build()
