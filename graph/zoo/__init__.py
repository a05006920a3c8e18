"""The built-in networks: published classifiers of 224x224 pixels, as ONNX models.

Layer shapes are as published. Weights are random with fixed seeds, not trained. The output is
logits.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import onnx

from fastrun.graph.core.errors import ModelFileError
from fastrun.graph.zoo.mobilenet import mobilenetv2
from fastrun.graph.zoo.resnet import resnet18, resnet50
from fastrun.graph.zoo.shufflenet import shufflenetv2
from fastrun.graph.zoo.squeezenet import squeezenet
from fastrun.graph.zoo.vgg import vgg16

_BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenetv2": mobilenetv2,
    "shufflenetv2": shufflenetv2,
    "vgg16": vgg16,
    "squeezenet1.1": squeezenet,
}
NAMES = tuple(_BUILDERS)


def build(name: str) -> onnx.ModelProto:
    """The network called `name`, one of `NAMES`; equal on every call.

    Raises:
        ModelFileError: there is no such network.
    """
    if name not in _BUILDERS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(NAMES)}"
        raise ModelFileError(f"no network called {name!r}: {hint}")
    return _BUILDERS[name]()
