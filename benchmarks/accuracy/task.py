"""What a task is: a network, calibration data, samples with right answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from fastrun.benchmarks.peers import Array

Feeds = Mapping[str, Array]
"""The inputs of one call of a network, by name."""

CALIBRATION, TEST = 0, 1
"""The first number of a sample's seed. Data of one are never data of the other."""


@dataclass(frozen=True)
class Sample:
    """The inputs of a network, and whether outputs are the right answer.

    `right` is None if the answer is not known; then it can only be compared with float32.
    """

    inputs: Feeds
    right: Callable[[Sequence[Array]], bool] | None = None


@dataclass(frozen=True)
class Task:
    """A float32 network of fixed shapes and batch 1, and its data.

    `samples` begins anew with every call, always with the same samples; it may be endless.
    """

    name: str
    model: onnx.ModelProto
    calibration: Sequence[Feeds]
    samples: Callable[[], Iterator[Sample]]


def classified(label: int) -> Callable[[Sequence[Array]], bool]:
    """Whether the largest number of the first output is that of class `label`."""
    return lambda outputs: int(outputs[0].argmax()) == label


def fix_shape(model: onnx.ModelProto, shape: Sequence[int]) -> str:
    """Set the shape of a model's only input, and return the input's name."""
    weights = {w.name for w in model.graph.initializer}
    [value] = [v for v in model.graph.input if v.name not in weights]
    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    return str(value.name)


def draws(*seed: int) -> np.random.Generator:
    """The random numbers of one sample."""
    return np.random.default_rng(seed)
