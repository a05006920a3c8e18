"""MobileNetV2, width 1.0 (Sandler et al., 2018)."""

from __future__ import annotations

import onnx

from fastrun.graph.zoo.writer import Writer

# expansion, output channels, blocks, stride of the first block: table 2 of the paper
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
BRANCH_GAIN = 0.5


def mobilenetv2() -> onnx.ModelProto:
    """Seventeen inverted residual blocks between a strided 3x3 and a 1x1 convolution."""
    net = Writer("mobilenetv2")
    x = _conv(net, "features.0", net.input, 32, 3, stride=2)
    ic, index = 32, 1
    for expansion, oc, blocks, first_stride in STAGES:
        for block in range(blocks):
            stride = 1 if block else first_stride
            x = _inverted_residual(net, f"features.{index}", x, ic, oc, expansion, stride)
            ic, index = oc, index + 1
    x = _conv(net, f"features.{index}", x, 1280, 1)
    x = net.flatten("flatten", net.global_average_pool("avgpool", x))
    return net.model(net.dense("classifier", net.dropout("dropout", x), 1000))


def _conv(
    net: Writer, prefix: str, x: str, oc: int, kernel: int, stride: int = 1, groups: int = 1
) -> str:
    x = net.conv(f"{prefix}.conv", x, oc, kernel, stride=stride, padding=kernel // 2, groups=groups)
    return net.relu6(f"{prefix}.relu6", net.batch_norm(f"{prefix}.bn", x))


def _inverted_residual(
    net: Writer, prefix: str, x: str, ic: int, oc: int, expansion: int, stride: int
) -> str:
    y, width = x, ic * expansion
    if expansion > 1:
        y = _conv(net, f"{prefix}.expand", y, width, 1)
    y = _conv(net, f"{prefix}.depthwise", y, width, 3, stride, groups=width)
    y = net.conv(f"{prefix}.project.conv", y, oc, 1)
    residual = stride == 1 and ic == oc
    y = net.batch_norm(f"{prefix}.project.bn", y, BRANCH_GAIN if residual else 1.0)
    return net.add(f"{prefix}.add", x, y) if residual else y
