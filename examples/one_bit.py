"""A small network of one bit, trained here, beside the same network in float32 and in 8 bits.

    pip install --editable '.[torch]'
    python examples/one_bit.py [FOLDER]

Handwritten digits (8x8 pixels, of scikit-learn). Two of three convolutions read signs and have
weights that are signs times a magnitude for each filter (XNOR-Net, Rastegari et al., 2016). Signs
have no useful gradient: training passes it on as if they were the numbers themselves, where these
are from -1 to 1 (the straight-through estimator). Files of all three are written to FOLDER.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import fastrun

CHANNELS = 64, 128, 128
TRAINED, EPOCHS, BATCH = 1000, 20, 50  # digits to train with; the other 797 are tested
BLOCKS, INFERENCES = 30, 100  # of a time: the least of blocks of inferences


def with_gradient(signs: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Signs whose gradient goes to the numbers between -1 and 1."""
    inside = numbers.clamp(-1, 1)
    return (signs - inside).detach() + inside


def sign(x: torch.Tensor) -> torch.Tensor:
    """-1 below zero, else 1."""
    return torch.where(x < 0, -torch.ones_like(x), torch.ones_like(x))


class Digits(nn.Module):
    """Three convolutions and a dense layer; with `bits` of 1 the second and the third count."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        a, b, c = CHANNELS
        self.bits = bits
        self.convolutions = nn.ModuleList(
            nn.Conv2d(m, n, 3, padding=0, bias=False) for m, n in ((1, a), (a, b), (b, c))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in CHANNELS)
        self.dense = nn.Linear(c * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (convolve, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            counts = self.bits == 1 and i > 0
            if i > 0:
                x = with_gradient(sign(x), x) if counts else functional.relu(x)
            weights = self.signed(convolve.weight) if counts else convolve.weight
            padded = functional.pad(x, (1, 1, 1, 1), value=float(counts))
            x = norm(functional.conv2d(padded, weights))
        return self.dense(functional.max_pool2d(x, 2).flatten(1))

    @staticmethod
    def signed(weights: torch.Tensor) -> torch.Tensor:
        """Signs times the mean absolute weight of each filter."""
        size = weights.abs().mean(dim=(1, 2, 3), keepdim=True)
        return with_gradient(sign(weights) * size, weights)


def trained(bits: int, images: torch.Tensor, labels: torch.Tensor) -> Digits:
    """The network after training on digits that are moved by up to a pixel."""
    torch.manual_seed(0)
    network = Digits(bits)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for _ in range(EPOCHS):
        for some in torch.randperm(len(images)).split(BATCH):
            moved = torch.roll(images[some], tuple(torch.randint(-1, 2, (2,)).tolist()), (2, 3))
            loss = functional.cross_entropy(network(moved), labels[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        plan.step()
    return network.eval()


def as_onnx(network: Digits) -> onnx.ModelProto:
    """The network with its normalisations in the convolutions.

    A sign that is one at zero is Sign(Sign(x) + 1/2). Padding is ones, since zero has no sign.
    """
    constants: dict[str, np.ndarray] = {
        "half": np.float32(0.5), "one": np.float32(1), "nothing": np.float32(0),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }  # fmt: skip
    nodes, x = list[onnx.NodeProto](), "x"

    def put(operator: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    for i, (convolve, norm) in enumerate(zip(network.convolutions, network.norms, strict=True)):
        counts = network.bits == 1 and i > 0
        if i > 0:
            x = put("Sign", put("Add", put("Sign", x), "half")) if counts else put("Relu", x)
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        weights = convolve.weight
        if counts:  # magnitudes that are equal to the bit
            size = weights.abs().mean(dim=(1, 2, 3)) * factor
            weights = sign(weights) * size[:, None, None, None]
        else:
            weights = weights * factor[:, None, None, None]
        constants[f"w{i}"] = weights.detach().numpy()
        constants[f"b{i}"] = (norm.bias - norm.running_mean * factor).detach().numpy()
        padded = put("Pad", x, "pads", "one" if counts else "nothing")
        x = put("Conv", padded, f"w{i}", f"b{i}")
    constants["w"], constants["b"] = (v.detach().numpy() for v in network.dense.parameters())
    flat = put("Flatten", put("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    y = put("Gemm", flat, "w", "b", transB=1)
    graph = helper.make_graph(
        nodes,
        f"digits_{network.bits}",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 1, 8, 8))],
        [helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, (1, 10))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    digits = load_digits()
    images = (digits.images[:, None] / 8 - 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], digits.target[order]
    known = torch.tensor(images[:TRAINED]), torch.tensor(labels[:TRAINED])
    models = {name: as_onnx(trained(bits, *known)) for name, bits in (("f32", 32), ("b1", 1))}
    models["int8"] = fastrun.quantise(models["f32"], {"x": images[:128]}).model
    networks = {}
    for name, model in models.items():
        onnx.save(model, folder / f"digits_{name}.onnx")
        networks[name] = fastrun.load(model, policy="heuristic")
    times: dict[str, list[float]] = {name: list[float]() for name in networks}
    for _ in range(BLOCKS):
        for name, network in networks.items():
            start = time.perf_counter()
            for image in images[:INFERENCES]:
                network(image[None])
            times[name].append((time.perf_counter() - start) / INFERENCES)
    for name, network in networks.items():
        tested = list(zip(images[TRAINED:], labels[TRAINED:], strict=True))
        right = sum(int(network(image[None]).argmax()) == label for image, label in tested)
        counted = {s.algorithm.partition("(")[0] for s in network.steps}
        size = network.memory.weights / 1e3
        print(
            f"{name:4}  {right} of {len(tested)} right  {min(times[name]) * 1e6:6.1f} us  "
            f"{size:6.0f} KB of weights  {', '.join(sorted(counted))}"
        )


if __name__ == "__main__":
    main()
