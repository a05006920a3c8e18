"""VGG-16, configuration D without batch normalisation (Simonyan and Zisserman, 2014)."""

from __future__ import annotations

import onnx

from fastrun.graph.zoo.writer import Writer

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg16() -> onnx.ModelProto:
    """Thirteen 3x3 convolutions and three dense layers: 138 million weights, 553 MB."""
    net = Writer("vgg16")
    x = net.input
    for stage, (oc, convolutions) in enumerate(STAGES, start=1):
        for index in range(1, convolutions + 1):
            x = net.conv(f"conv{stage}_{index}", x, oc, 3, padding=1, bias=True)
            x = net.relu(f"relu{stage}_{index}", x)
        x = net.max_pool(f"pool{stage}", x, 2, 2)
    x = net.flatten("flatten", x, pixels=7 * 7)
    for index in (6, 7):
        x = net.relu(f"relu{index}", net.dense(f"fc{index}", x, 4096))
        x = net.dropout(f"drop{index}", x)
    return net.model(net.dense("fc8", x, 1000))
