"""Handwritten digits of 8x8 pixels and a small network that PyTorch trains within seconds.

The pictures are those of scikit-learn (UCI's test set of optical digits). The first 1,000 train the
network, some of them calibrate, the other 797 are the test.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fastrun.benchmarks.accuracy.task import CALIBRATION, Sample, Task, classified, draws
from fastrun.benchmarks.peers import Array

packages = ("sklearn", "torch")

TRAINING = 1000  # pictures

_INPUT = "input"
_CALIBRATION = 100  # pictures
_EPOCHS, _BATCH = 15, 50


def load() -> Task:
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures: Array = (data.images[:, None] / 8 - 1).astype(np.float32)
    model = _trained(pictures[:TRAINING], data.target[:TRAINING])

    def samples() -> Iterator[Sample]:
        for picture, label in zip(pictures[TRAINING:], data.target[TRAINING:], strict=True):
            yield Sample({_INPUT: picture[None]}, classified(int(label)))

    chosen = draws(CALIBRATION).choice(TRAINING, _CALIBRATION, replace=False)
    return Task("digits", model, [{_INPUT: pictures[i][None]} for i in chosen], samples)


def _network() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )


def _trained(pictures: Array, labels: NDArray[np.int64]) -> onnx.ModelProto:
    """The network after its training, which begins from a fixed seed."""
    import torch

    x, y = torch.from_numpy(pictures), torch.from_numpy(labels.astype(np.int64))
    with torch.enable_grad(), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = _network()
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(x)).split(_BATCH):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
                optimiser.step()
    file = io.BytesIO()
    torch.onnx.export(
        network.eval(),
        (x[:1],),
        file,
        input_names=[_INPUT],
        output_names=["logits"],
        opset_version=17,
        dynamo=False,
    )
    return onnx.load_model_from_string(file.getvalue())
