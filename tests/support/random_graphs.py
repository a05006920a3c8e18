"""Small networks drawn at random: branches, residuals, concatenations, shared tensors, pads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.random_operators import Draw

Shape = tuple[int, ...]


class Network(Draw):
    """A draw of many nodes; `shapes` are those of the images computed so far, newest last."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 17])
        super().__init__(rng, int(rng.integers(14, 21)))
        self.shapes: dict[str, Shape] = {}
        n, c, size = self.int(1, 2), self.one(3, 4, 8, 16), self.int(5, 9)
        shape = n, c, size, self.one(size, size + 3)
        self.shapes[self.input("x", self.normal(*shape))] = shape
        for _ in range(self.int(4, 12)):
            self.one(*BLOCKS)(self)
        made = list(self.shapes)[1:]
        self.outputs = [made[-1], *self.rng.permutation(made[:-1])[: self.one(0, 0, 1, 2)]]

    def any(self) -> str:
        """A tensor: more often a new one, or the input."""
        names = list(self.shapes)
        return self.one(names[-1], names[-1], *names)

    def alike(self, shape: Shape) -> str:
        """Any tensor of this shape."""
        return str(self.one(*(name for name, other in self.shapes.items() if other == shape)))

    def inner(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node whose result nothing but the block that adds it shall read."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def put(self, shape: Shape, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node whose result, of this shape, others may read."""
        name = self.inner(operator, *inputs, **attributes)
        self.shapes[name] = shape
        return name

    def constant(self, values: Any) -> str:
        """A constant of a name of its own."""
        return self.weight(f"c{len(self.weights)}", values)

    def numbers(self, *shape: int) -> str:
        """A constant of positive numbers around one."""
        return self.constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32))

    def activation(self, x: str) -> str:
        """x through a function; not always."""
        function = self.one("", "", "Relu", "Relu", "Relu6", "Sigmoid", "LeakyRelu", "HardSwish",
                            "HardSigmoid", "Tanh", "silu", "gelu", "relu6 gate")  # fmt: skip
        match function:
            case "":
                return x
            case "Relu6":
                zero, six = self.constant(np.float32(0)), self.constant(np.float32(6))
                return self.inner("Clip", x, zero, six)
            case "silu":
                return self.inner("Mul", *self.shuffled(x, self.inner("Sigmoid", x)))
            case "gelu":
                ratio = self.constant(np.float32(2**0.5))
                gate = self.inner("Erf", self.inner("Div", x, ratio))
                gate = self.inner("Add", gate, self.constant(np.float32(1)))
                half = self.inner("Mul", x, self.constant(np.float32(0.5)))
                return self.inner("Mul", *self.shuffled(half, gate))
            case "relu6 gate":
                moved = self.inner("Add", x, self.constant(np.float32(3)))
                zero, six = self.constant(np.float32(0)), self.constant(np.float32(6))
                gate = self.inner("Clip", moved, zero, six)
                scaled = self.inner("Div", gate, self.constant(np.float32(6)))
                return self.inner("Mul", *self.shuffled(x, scaled))
            case "HardSigmoid":
                return self.inner(function, x, alpha=self.one(1 / 6, 0.2))
            case "LeakyRelu":
                return self.inner(function, x, alpha=self.one(0.1, 0.01, 0.3))
        return self.inner(function, x)

    def shuffled(self, *names: str) -> list[str]:
        """The names in any order."""
        return [str(name) for name in self.rng.permutation(list(names))]

    def conv(self, x: str, shape: Shape, *, oc: int = 0, k: int = 0, pad: int = -1) -> str:
        """A convolution of stride 1, with a bias by chance."""
        c = shape[1]
        k = k or self.one(1, 1, 3, 3, 5)
        oc = oc or self.one(c, c, 4, 6, 8, 16)
        groups = self.one(1, 1, 1, c, 2)
        groups = groups if c % groups == oc % groups == 0 else 1
        filters = self.normal(oc, c // groups, k, k) * np.float32((c // groups * k * k) ** -0.5)
        names = [x, self.constant(filters)]
        if self.maybe():
            names.append(self.constant(self.normal(oc)))
        pads = [k // 2 if pad < 0 else pad] * 4
        return self.inner("Conv", *names, group=groups, pads=pads)

    def norm(self, x: str, c: int) -> str:
        """A batch normalisation, or arithmetic by channel; not always."""
        match self.int(0, 5):
            case 0:
                shift, mean = self.constant(self.normal(c)), self.constant(self.normal(c))
                names = self.numbers(c), shift, mean, self.numbers(c)
                return self.inner("BatchNormalization", x, *names)
            case 1:
                shape = self.one((1, c, 1, 1), (c, 1, 1), (1,), ())
                operator = self.one("Mul", "Add", "Div", "Sub")
                names = [x, self.numbers(*shape)]
                return self.inner(
                    operator, *(names if operator in "DivSub" else self.shuffled(*names))
                )
        return x

    def model(self) -> onnx.ModelProto:
        """The network, with its outputs in place of those of the last node."""
        m = super().model()
        del m.graph.output[:]
        for name in self.outputs:
            m.graph.output.append(helper.make_tensor_value_info(str(name), TensorProto.FLOAT, None))
        return m


def convolution(d: Network) -> None:
    x = d.any()
    n, c, h, w = d.shapes[x]
    oc = d.one(c, 4, 6, 8, 16)
    y = d.activation(d.norm(d.conv(x, d.shapes[x], oc=oc), oc))
    d.put((n, oc, h, w), "Identity", y)


def residual(d: Network) -> None:
    x = d.any()
    shape = d.shapes[x]
    c = shape[1]
    y = d.norm(d.conv(d.activation(x), shape, oc=c), c)
    if d.maybe(0.3):
        y = d.activation(y)
    other = d.one(x, x, d.alike(shape), y)
    total = d.inner("Add", *d.shuffled(y, other))
    d.put(shape, "Identity", d.activation(d.norm(total, c)))


def parallel(d: Network) -> None:
    """Branches that are added, as RepVGG trains them."""
    x = d.any()
    n, c, h, w = shape = d.shapes[x]
    oc = d.one(c, 8)
    sides = [d.norm(d.conv(x, shape, oc=oc), oc) for _ in range(2)]
    if oc == c and d.maybe():
        sides.append(d.norm(x, c))
    total = sides[0]
    for side in sides[1:]:
        total = d.inner("Add", *d.shuffled(total, side))
    d.put((n, oc, h, w), "Identity", d.activation(total))


def concatenation(d: Network) -> None:
    x = d.any()
    n, _, h, w = d.shapes[x]
    fitting = [name for name, s in d.shapes.items() if (s[0], *s[2:]) == (n, h, w)]
    names = [d.one(x, *fitting) for _ in range(d.int(1, 3))]
    if sum(d.shapes[name][1] for name in names) > 40:
        names = names[:1]
    c = sum(d.shapes[name][1] for name in names)
    y = d.inner("Concat", *names, axis=d.one(1, -3))
    d.put((n, c, h, w), "Identity", d.activation(d.norm(y, c)))


def split(d: Network) -> None:
    x = d.any()
    n, c, h, w = d.shapes[x]
    first = d.int(1, c - 1) if c > 1 else 0
    if not first:
        return
    names = [f"t{len(d.nodes)}", f"s{len(d.nodes)}"]
    sizes = d.constant(np.array([first, c - first]))
    d.nodes.append(helper.make_node("Split", [x, sizes], names, names[0], axis=1))
    for name, size in zip(names, (first, c - first), strict=True):
        d.shapes[name] = n, size, h, w


def shuffle(d: Network) -> None:
    x = d.any()
    n, c, h, w = shape = d.shapes[x]
    groups = d.one(2, 4, 3)
    if c % groups:
        return
    y = d.inner("Reshape", x, d.constant(np.array([n, groups, c // groups, h, w])))
    y = d.inner("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = d.put(shape, "Reshape", y, d.constant(np.array([n, c, h, w])))
    if d.maybe():
        d.put(shape, "Identity", d.conv(y, shape, oc=c))


def pooling(d: Network) -> None:
    """A pool, and sometimes a Pad in front of it or an activation behind it."""
    x = d.any()
    *outside, h, w = d.shapes[x]
    k, stride, own = d.int(1, 3), d.int(1, 2), 0
    y, pad = d.activation(x), 0
    if min(h, w) < 5:
        return
    if d.maybe():
        pad = d.one(-1, 1, 1, 2)
        value = d.constant(np.float32(d.one(0, 0, -np.inf, 1)))
        y = d.inner("Pad", y, d.constant(np.array([0, 0, pad, pad] * 2)), value)
    else:
        own = d.int(0, k // 2)
    given: dict[str, Any] = {"kernel_shape": [k, k], "strides": [stride] * 2, "pads": [own] * 4}
    operator = d.one("MaxPool", "AveragePool")
    if operator == "AveragePool":
        given["count_include_pad"] = d.int(0, 1)
    sizes = [(size + 2 * (pad + own) - k) // stride + 1 for size in (h, w)]
    y = d.inner(operator, y, **given)
    # What is not finite would be all that the rest of the network computes.
    y = d.inner("Max", y, d.constant(np.float32(-9)))
    d.put((*outside, *sizes), "Identity", d.activation(y))


def padded_convolution(d: Network) -> None:
    x = d.any()
    n, c, h, w = d.shapes[x]
    k, pad, own = d.one(1, 3), d.one(-1, 1, 2), d.int(0, 1)
    if min(h, w) < 5:
        return
    extra = d.one([0, 0], [0, 1])
    widths = np.array([*extra, pad, pad, 0, 0, pad, pad])
    y = d.inner("Pad", x, d.constant(widths), d.constant(np.float32(d.one(0, 0, 0.5))))
    sizes = [size + 2 * (pad + own) - k + 1 for size in (h, w)]
    oc = d.one(4, 8)
    y = d.conv(y, (n, c + extra[1], h, w), oc=oc, k=k, pad=own)
    d.put((n, oc, *sizes), "Identity", d.activation(y))


def last_axis(d: Network) -> None:
    """Products along channels that come last, as in ConvNeXt."""
    x = d.any()
    n, c, h, w = d.shapes[x]
    m = d.one(4, c, 8)
    y = d.inner("Transpose", d.activation(x), perm=[0, 2, 3, 1])
    matrix = d.constant(d.normal(c, m) * np.float32(c**-0.5))
    y = d.inner("MatMul", y, matrix)
    if d.maybe():
        y = d.inner("Add", *d.shuffled(y, d.constant(d.normal(m))))
    y = d.activation(y)
    if d.maybe(0.3):
        y = d.inner("Mul", y, d.numbers(m))
    d.put((n, m, h, w), "Transpose", y, perm=[0, 3, 1, 2])


def gate(d: Network) -> None:
    """Squeeze and excitation."""
    x = d.any()
    n, c, *_ = shape = d.shapes[x]
    if d.opset < 18 and d.maybe():
        y = d.inner("ReduceMean", x, axes=[-2, -1], keepdims=1)
    else:
        y = d.inner("GlobalAveragePool", x)
    y = d.activation(d.conv(y, (n, c, 1, 1), oc=4, k=1))
    y = d.inner("Sigmoid", d.conv(y, (n, 4, 1, 1), oc=c, k=1))
    d.put(shape, "Identity", d.activation(d.inner("Mul", *d.shuffled(x, y))))


def resizing(d: Network) -> None:
    x = d.any()
    n, c, h, w = d.shapes[x]
    if h * w > 150:
        return
    scales = d.constant(np.array([1, 1, 2, 2], np.float32))
    y = d.inner("Resize", d.activation(x), "", scales, mode=d.one("nearest", "linear"))
    d.put((n, c, 2 * h, 2 * w), "Identity", d.norm(y, c))


def arithmetic(d: Network) -> None:
    x = d.any()
    shape = d.shapes[x]
    y = d.inner(d.one("Add", "Sub", "Mul", "Max", "Min"), *d.shuffled(x, d.alike(shape)))
    y = d.inner("Tanh", y) if d.maybe(0.3) else d.activation(d.norm(y, shape[1]))
    d.put(shape, d.one("Identity", "Dropout", "Relu"), y)


def transposed(d: Network) -> None:
    x = d.any()
    n, c, h, w = d.shapes[x]
    if h * w > 150:
        return
    oc = d.one(4, 8)
    y = d.inner("ConvTranspose", x, d.constant(d.normal(c, oc, 2, 2) * np.float32(c**-0.5)),
                strides=[2, 2])  # fmt: skip
    d.put((n, oc, 2 * h, 2 * w), "Identity", d.activation(d.norm(y, oc)))


BLOCKS: tuple[Callable[[Network], None], ...] = (
    convolution, convolution, convolution, residual, residual, residual, parallel, parallel,
    concatenation, concatenation, split, shuffle, shuffle, pooling, pooling, padded_convolution,
    last_axis, gate, resizing, arithmetic, arithmetic, transposed,
)  # fmt: skip
