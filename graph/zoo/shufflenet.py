"""ShuffleNetV2, width 1.0 (Ma et al., 2018)."""

from __future__ import annotations

import onnx

from fastrun.graph.zoo.writer import Writer

# output channels, blocks, height and width of the output
STAGES = ((116, 4, 28), (232, 8, 14), (464, 4, 7))
# He's weights presume an activation that halves the variance; depthwise convolutions have none.
LINEAR_GAIN = 0.5**0.5


def shufflenetv2() -> onnx.ModelProto:
    """Three stages of units that split, transform half of the channels, concatenate and shuffle."""
    net = Writer("shufflenetv2")
    x = net.conv("conv1", net.input, 24, 3, stride=2, padding=1)
    x = net.relu("conv1.relu", net.batch_norm("conv1.bn", x))
    x = net.max_pool("maxpool", x, 3, 2, padding=1)
    for stage, (oc, blocks, hw) in enumerate(STAGES, start=2):
        for block in range(blocks):
            prefix = f"stage{stage}.{block}"
            x = _unit(net, prefix, x, oc // 2, strided=not block)
            x = net.shuffle_channels(f"{prefix}.shuffle", x, 2, hw)
    x = net.relu("conv5.relu", net.batch_norm("conv5.bn", net.conv("conv5", x, 1024, 1)))
    x = net.flatten("flatten", net.global_average_pool("avgpool", x))
    return net.model(net.dense("fc", x, 1000))


def _unit(net: Writer, prefix: str, x: str, width: int, strided: bool) -> str:
    left, right = (x, x) if strided else net.halves(f"{prefix}.split", x)
    if strided:
        left = _depthwise(net, f"{prefix}.left.1", left, stride=2)
        left = _pointwise(net, f"{prefix}.left.2", left, width)
    right = _pointwise(net, f"{prefix}.right.1", right, width)
    right = _depthwise(net, f"{prefix}.right.2", right, stride=2 if strided else 1)
    right = _pointwise(net, f"{prefix}.right.3", right, width)
    return net.concat(f"{prefix}.concat", (left, right))


def _pointwise(net: Writer, prefix: str, x: str, oc: int) -> str:
    x = net.batch_norm(f"{prefix}.bn", net.conv(f"{prefix}.conv", x, oc, 1))
    return net.relu(f"{prefix}.relu", x)


def _depthwise(net: Writer, prefix: str, x: str, stride: int) -> str:
    c = net.channels(x)
    x = net.conv(f"{prefix}.conv", x, c, 3, stride=stride, padding=1, groups=c)
    return net.batch_norm(f"{prefix}.bn", x, LINEAR_GAIN)
