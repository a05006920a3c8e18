"""ResNet-18 and ResNet-50 (He et al., 2015), version 1.

As in the paper, a strided bottleneck has the stride in its first 1x1, so every 3x3 of ResNet-50
has stride 1. The variant with the stride in the 3x3 ("v1.5") has the same parameters.
"""

from __future__ import annotations

import onnx

from fastrun.graph.zoo.writer import Writer

BRANCH_GAIN = 0.3


def resnet18() -> onnx.ModelProto:
    """Four stages of two basic blocks."""
    return _resnet("resnet18", (2, 2, 2, 2), bottleneck=False)


def resnet50() -> onnx.ModelProto:
    """Four stages of 3, 4, 6 and 3 bottleneck blocks."""
    return _resnet("resnet50", (3, 4, 6, 3), bottleneck=True)


def _resnet(name: str, depths: tuple[int, ...], bottleneck: bool) -> onnx.ModelProto:
    net = Writer(name)
    x = net.conv("conv1", net.input, 64, 7, stride=2, padding=3)
    x = net.relu("relu", net.batch_norm("bn1", x))
    x = net.max_pool("maxpool", x, 3, 2, padding=1)
    for stage, depth in enumerate(depths):
        width = 64 << stage
        oc = 4 * width if bottleneck else width
        for block in range(depth):
            prefix = f"layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            branch = _bottleneck if bottleneck else _basic
            y = branch(net, prefix, x, width, stride)
            if not block and (stage or bottleneck):
                x = net.conv(f"{prefix}.downsample.0", x, oc, 1, stride=stride)
                x = net.batch_norm(f"{prefix}.downsample.1", x)
            x = net.relu(f"{prefix}.relu", net.add(f"{prefix}.add", y, x))
    x = net.flatten("flatten", net.global_average_pool("avgpool", x))
    return net.model(net.dense("fc", x, 1000))


def _basic(net: Writer, prefix: str, x: str, width: int, stride: int) -> str:
    x = net.conv(f"{prefix}.conv1", x, width, 3, stride=stride, padding=1)
    x = net.relu(f"{prefix}.relu1", net.batch_norm(f"{prefix}.bn1", x))
    x = net.conv(f"{prefix}.conv2", x, width, 3, padding=1)
    return net.batch_norm(f"{prefix}.bn2", x, BRANCH_GAIN)


def _bottleneck(net: Writer, prefix: str, x: str, width: int, stride: int) -> str:
    x = net.conv(f"{prefix}.conv1", x, width, 1, stride=stride)
    x = net.relu(f"{prefix}.relu1", net.batch_norm(f"{prefix}.bn1", x))
    x = net.conv(f"{prefix}.conv2", x, width, 3, padding=1)
    x = net.relu(f"{prefix}.relu2", net.batch_norm(f"{prefix}.bn2", x))
    x = net.conv(f"{prefix}.conv3", x, 4 * width, 1)
    return net.batch_norm(f"{prefix}.bn3", x, BRANCH_GAIN)
