"""SqueezeNet 1.1 (Iandola et al., 2016; the authors' release 1.1)."""

from __future__ import annotations

import onnx

from fastrun.graph.zoo.writer import Writer

# squeeze and expand channels of fire modules 2 to 9; a pool precedes modules 2, 4 and 6
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
POOLED = (2, 4, 6)


def squeezenet() -> onnx.ModelProto:
    """Eight fire modules; the classifier is a 1x1 convolution."""
    net = Writer("squeezenet1.1")
    x = net.relu("relu1", net.conv("conv1", net.input, 64, 3, stride=2, bias=True))
    for index, (squeeze, expand) in enumerate(FIRES, start=2):
        if index in POOLED:
            x = net.max_pool(f"pool{index - 1}", x, 3, 2, ceil=True)
        x = _fire(net, f"fire{index}", x, squeeze, expand)
    x = net.conv("conv10", net.dropout("drop9", x), 1000, 1, bias=True)
    x = net.global_average_pool("pool10", net.relu("relu10", x))
    return net.model(net.flatten("flatten", x))


def _fire(net: Writer, prefix: str, x: str, squeeze: int, expand: int) -> str:
    def conv(name: str, x: str, oc: int, kernel: int) -> str:
        x = net.conv(f"{prefix}.{name}", x, oc, kernel, padding=kernel // 2, bias=True)
        return net.relu(f"{prefix}.{name}.relu", x)

    x = conv("squeeze", x, squeeze, 1)
    parts = (conv("expand1x1", x, expand, 1), conv("expand3x3", x, expand, 3))
    return net.concat(f"{prefix}.concat", parts)
