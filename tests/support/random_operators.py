"""Models of one operator, drawn at random over opsets and attributes, odd ones included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Values = NDArray[Any]


@dataclass
class Draw:
    """Dice, and the model that they make: nodes, weights and the values of its inputs."""

    rng: np.random.Generator
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Values] = field(default_factory=dict)
    inputs: dict[str, Values] = field(default_factory=dict)

    def one(self, *options: Any) -> Any:
        """One of the options."""
        return options[self.rng.integers(len(options))]

    def int(self, low: int, high: int) -> int:
        """A number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def ints(self, count: int, low: int, high: int) -> list[int]:
        """As many of them."""
        return [self.int(low, high) for _ in range(count)]

    def maybe(self, chance: float = 0.5) -> bool:
        """True by chance."""
        return bool(self.rng.random() < chance)

    def axis(self, rank: int) -> int:
        """An axis, counted from the front or the back."""
        return self.int(-rank, rank - 1)

    def axes(self, rank: int, least: int = 1) -> list[int]:
        """Different axes in any order, counted from the front or the back."""
        count = self.int(least, rank)
        found = self.rng.permutation(rank)[:count]
        return [int(a) - rank * self.maybe() for a in found]

    def shape(self, *ranks: int, most: int = 6) -> list[int]:
        """A shape of one of the ranks."""
        return self.ints(self.one(*ranks), 1, most)

    def normal(self, *shape: int) -> Values:
        """Values around zero."""
        return self.rng.standard_normal(shape, dtype=np.float32)

    def input(self, name: str, values: Values) -> str:
        """Give a value when the model runs."""
        self.inputs[name] = values
        return name

    def weight(self, name: str, values: Any) -> str:
        """Give a value in the model."""
        self.weights[name] = np.asarray(values)
        return name

    def either(self, name: str, values: Values, chance: float = 0.5) -> str:
        """Give a value in the model or, by this chance, when it runs."""
        return (self.input if self.maybe(chance) else self.weight)(name, values)

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> None:
        """The operator; attributes that are None are left out."""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        given = {k: v for k, v in attributes.items() if v is not None}
        names = ["y", *(f"y{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, inputs, names, "n", **given))

    def model(self) -> onnx.ModelProto:
        """What was drawn; every tensor that the last node computes is an output."""
        graph = helper.make_graph(
            self.nodes,
            "drawn",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
                )
                for name, a in self.inputs.items()
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                for name in self.nodes[-1].output
            ],
            [numpy_helper.from_array(a, name) for name, a in self.weights.items()],
        )
        version = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[version], ir_version=8)


DRAWN: dict[str, Callable[[Draw], None]] = {}
NEWEST = 25


def drawn(name: str, seed: int) -> Draw:
    """A draw of one of `DRAWN`."""
    rng = np.random.default_rng([seed, *name.encode()])
    draw = Draw(rng, int(rng.integers(7, NEWEST + 1)))
    DRAWN[name](draw)
    return draw


def draws(function: Callable[[Draw], None]) -> Callable[[Draw], None]:
    DRAWN[function.__name__] = function
    return function


@draws
def unary(d: Draw) -> None:
    since = {"Gelu": 20, "Mish": 18, "HardSwish": 14, "Celu": 12, "Round": 11, "Sign": 9, "Erf": 9}
    names = (
        "Relu Sigmoid LeakyRelu HardSigmoid Tanh Erf Elu Celu Selu Softplus Softsign Mish Exp Log "
        "Sqrt Reciprocal Neg Abs Sign Floor Ceil Round Sin Cos Gelu HardSwish Identity"
    )
    operator = d.one(*(n for n in names.split() if since.get(n, 7) <= d.opset))
    number = d.one(None, 0.25, 1.5, -0.5, 0.0)
    given: dict[str, Any] = {}
    if operator in ("LeakyRelu", "Elu", "Celu", "HardSigmoid", "Selu"):
        given["alpha"] = (number or None) if operator == "Celu" else number
    if operator == "HardSigmoid":
        given["beta"] = d.one(None, 0.1, -1.0)
    if operator == "Selu":
        given["gamma"] = d.one(None, 2.0, -1.0)
    if operator == "Gelu":
        given["approximate"] = d.one(None, "none", "tanh")
    d.node(operator, d.input("x", 3 * d.normal(*d.shape(0, 1, 2, 3, 4, 5))), **given)


@draws
def clip(d: Draw) -> None:
    x = d.input("x", 5 * d.normal(*d.shape(1, 3, 4)))
    low, high = d.one(None, 0.0, -1.0, 2.0), d.one(None, 6.0, 1.0, -2.0)
    if d.opset < 11:
        d.node("Clip", x, min=low, max=high)
        return
    shape = d.one((), (), (1,)) if d.opset < 13 else ()
    bounds = [
        "" if v is None else d.weight(n, np.full(shape, v, np.float32))
        for n, v in (("low", low), ("high", high))
    ]
    d.node("Clip", x, *bounds)


def _other_shape(d: Draw, shape: list[int]) -> list[int]:
    """A shape that broadcasts with another one."""
    found = [1 if d.maybe(0.4) else size for size in shape]
    if d.maybe(0.3):
        found = found[d.int(0, len(found)) :]
    elif d.maybe(0.2):
        found = [d.int(1, 3), *found]
    return found


@draws
def binary(d: Draw) -> None:
    operator = d.one("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum")
    shape = d.shape(0, 1, 2, 3, 4, 5)
    a, b = d.normal(*(1 if d.maybe(0.1) else s for s in shape)), d.normal(*_other_shape(d, shape))
    if operator == "Pow":
        b = d.one(b, np.float32(2), np.float32(0.5), np.full(b.shape, 3.0, np.float32))
        if d.opset >= 12 and d.maybe(0.2):
            b = np.int64(d.one(2, 3, -1))
    names = [d.input("x", a), d.either("b", np.asarray(b), 0.5 * (b.dtype == np.float32))]
    if d.maybe(0.3):
        names = names[::-1]
    if operator in ("Max", "Min", "Sum") and (d.opset >= 8 or operator != "Sum"):
        if d.maybe(0.4):
            names.append(d.either("c", d.normal(*_other_shape(d, shape))))
        elif d.maybe(0.2):
            names = ["x"]
    if d.maybe(0.1):
        names = ["x"] * len(names)
    d.node(operator, *names)


@draws
def prelu(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4)
    slope = [1 if d.maybe() else s for s in shape][d.int(0, len(shape)) :]
    if d.opset >= 9 and len(shape) > 2 and d.maybe(0.4):
        slope = [shape[1], *(1,) * (len(shape) - 2)]
    elif len(shape) > 1 and d.maybe(0.3):
        slope = [shape[1]]
    d.node("PRelu", d.input("x", d.normal(*shape)), d.either("s", d.normal(*slope), 0.2))


@draws
def softmax(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4)
    axis = d.one(None, d.axis(len(shape)))
    d.node(d.one("Softmax", "LogSoftmax"), d.input("x", 3 * d.normal(*shape)), axis=axis)


@draws
def gemm(d: Draw) -> None:
    m, k, n = d.ints(3, 1, 7)
    at, bt = d.maybe(), d.maybe()
    a, b = d.normal(*((k, m) if at else (m, k))), d.normal(*((n, k) if bt else (k, n)))
    names = [d.either("a", a, 0.8), d.either("b", b, 0.3)]
    if not d.inputs:
        names[0] = d.input("a", d.weights.pop("a"))
    if d.opset < 11 or d.maybe(0.7):
        c = d.one((), (1,), (n,), (1, n), (m, 1), (m, n), (1, 1))
        names.append(d.either("c", d.normal(*c), 0.2))
    d.node("Gemm", *names, alpha=d.one(None, 0.5, 0.0), beta=d.one(None, 2.0, 0.0),
           transA=d.one(int(at), None if not at else 1), transB=int(bt))  # fmt: skip


@draws
def matmul(d: Draw) -> None:
    m, k, n = d.ints(3, 1, 7)
    batch = d.shape(0, 1, 2, most=3)
    a = [*([1 if d.maybe(0.3) else s for s in batch][d.int(0, len(batch)) :]), m, k]
    b = [*([1 if d.maybe(0.3) else s for s in batch][d.int(0, len(batch)) :]), k, n]
    if d.maybe(0.2):
        a = [k]
    if d.maybe(0.2):
        b = [k]
    names = [d.input("a", d.normal(*a)), d.either("b", d.normal(*b))]
    if d.maybe(0.2):
        d.inputs, d.weights = {}, {}
        names = [d.weight("a", d.normal(*a)), d.input("b", d.normal(*b))]
    d.node("MatMul", *names)


@draws
def reduce(d: Draw) -> None:
    operator = d.one("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
    shape = d.shape(1, 2, 3, 4, 5)
    x, keep = d.input("x", d.normal(*shape)), d.one(None, 0, 1)
    axes = d.one(None, d.axes(len(shape)), d.axes(len(shape)))
    if d.opset < (13 if operator == "ReduceSum" else 18):
        d.node(operator, x, axes=axes, keepdims=keep)
        return
    names = [] if axes is None else [d.weight("axes", np.array(axes, np.int64))]
    if axes is None and d.maybe(0.3):
        names = [d.weight("axes", np.zeros(0, np.int64))]
    noop = d.one(None, 0, 1)
    d.node(operator, x, *names, keepdims=keep, noop_with_empty_axes=noop)


@draws
def reshape(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4)
    sizes = [int(s) for s in d.rng.permutation(shape)]
    if d.maybe():
        sizes = [*sizes[: len(sizes) // 2], int(np.prod(sizes[len(sizes) // 2 :], dtype=int))]
    if d.maybe():
        sizes[d.int(0, len(sizes) - 1)] = -1
    if d.maybe(0.3) and sizes[0] != -1 and sizes[0] == shape[0]:
        sizes[0] = 0
    zero = d.one(None, 0, 1) if d.opset >= 14 else None
    d.node("Reshape", d.input("x", d.normal(*shape)), d.weight("s", np.array(sizes, np.int64)),
           allowzero=zero)  # fmt: skip


@draws
def flatten(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4, 5)
    rank = len(shape)
    axis = d.one(None, d.int(-rank if d.opset >= 11 else 0, rank))
    d.node("Flatten", d.input("x", d.normal(*shape)), axis=axis)


def _axes_given(d: Draw, operator: str, x: str, axes: list[int] | None) -> None:
    if d.opset < 13:
        d.node(operator, x, axes=axes)
    else:
        d.node(operator, x, *([] if axes is None else [d.weight("a", np.array(axes, np.int64))]))


@draws
def squeeze(d: Draw) -> None:
    shape = [1 if d.maybe() else s for s in d.shape(1, 2, 3, 4)]
    ones = [i - len(shape) * (d.maybe() and d.opset >= 11) for i, s in enumerate(shape) if s == 1]
    axes = d.one(None, ones[: d.int(1, len(ones))] if ones else None)
    _axes_given(d, "Squeeze", d.input("x", d.normal(*shape)), axes)


@draws
def unsqueeze(d: Draw) -> None:
    shape = d.shape(1, 2, 3)
    rank = len(shape) + d.int(1, 2)
    axes = [int(a) for a in d.rng.permutation(rank)[: rank - len(shape)]]
    if d.opset >= 11:
        axes = [a - rank * d.maybe() for a in axes]
    _axes_given(d, "Unsqueeze", d.input("x", d.normal(*shape)), axes)


@draws
def expand(d: Draw) -> None:
    d.opset = max(d.opset, 8)
    shape = [1 if d.maybe() else s for s in d.shape(1, 2, 3, 4)]
    wanted = [d.int(1, 4) if s == 1 else d.one(s, 1) for s in shape]
    wanted = [*d.ints(d.int(0, 1), 1, 3), *wanted] if d.maybe() else wanted[d.int(0, 1) :]
    d.node("Expand", d.input("x", d.normal(*shape)), d.weight("s", np.array(wanted, np.int64)))


@draws
def transpose(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4, 5)
    order = [int(i) for i in d.rng.permutation(len(shape))]
    d.node("Transpose", d.input("x", d.normal(*shape)), perm=d.one(None, order, order))


@draws
def concat(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4)
    axis = d.axis(len(shape))
    if d.opset < 11:
        axis %= len(shape)
    names = []
    for i in range(d.int(1, 4)):
        shape[axis] = d.int(1, 5)
        values = d.normal(*shape)
        names.append(d.input(f"x{i}", values) if not i else d.either(f"x{i}", values))
    if d.maybe(0.3):
        names.append(names[0])
    d.node("Concat", *names, axis=axis)


@draws
def split(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4)
    axis = d.axis(len(shape)) % (len(shape) if d.opset < 11 else 99)
    axis = axis if -len(shape) <= axis < len(shape) else axis % len(shape)
    count = d.int(1, 4)
    sizes = d.ints(count, 1, 3)
    x = "x"
    if d.maybe(0.6):
        shape[axis] = sum(sizes)
        d.input("x", d.normal(*shape))
        if d.opset < 13:
            d.node("Split", x, outputs=count, axis=axis, split=sizes)
        else:
            d.node("Split", x, d.weight("s", np.array(sizes, np.int64)), outputs=count, axis=axis)
        return
    even = d.opset < 18 or d.maybe()
    shape[axis] = count * d.int(1, 3) if even else max(count * d.int(2, 4) - d.int(0, 1), 1)
    d.input("x", d.normal(*shape))
    d.node("Split", x, outputs=count, axis=axis, num_outputs=count if d.opset >= 18 else None)


@draws
def slicing(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4, most=9)
    axes = d.axes(len(shape))
    if d.opset < 10:
        axes = [a % len(shape) for a in axes]
    starts, ends, steps = [], [], []
    for a in axes:
        n = shape[a]
        step = d.one(1, 1, 1, 2, 3, -1, -2) if d.opset >= 10 else 1
        low, high = sorted(d.ints(2, 0, n))
        low, high = (
            d.one(low, low - n, 0, -n - 2, -(2**31)),
            d.one(high, high - n - 1 or n, n + 1, 2**31 - 1),
        )
        first, last = (low, high) if step > 0 else (high, low)
        starts.append(first)
        ends.append(last)
        steps.append(step)
    if d.maybe(0.2):
        axes = list(range(len(axes)))
    x = d.input("x", d.normal(*shape))
    default = axes == list(range(len(axes))) and d.maybe()
    if d.opset < 10:
        d.node("Slice", x, starts=starts, ends=ends, axes=None if default else axes)
        return
    kind = d.one(np.int64, np.int32)
    lists = {"s": starts, "e": ends, "a": [] if default else axes}
    if any(s != 1 for s in steps) or d.maybe():
        lists["t"] = steps
    names = [d.weight(n, np.array(v, kind)) if v else "" for n, v in lists.items()]
    d.node("Slice", x, *names)


@draws
def pad(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4)
    rank = len(shape)
    mode = d.one("constant", "constant", "edge", "reflect", None)
    value = d.one(None, 0.0, 1.5, -np.inf)
    axes = d.axes(rank) if d.opset >= 18 and d.maybe() else None
    count = len(axes) if axes else rank
    least = -2 if d.maybe(0.3) else 0
    pads = d.ints(2 * count, least, 3)
    x = d.input("x", d.normal(*shape))
    if d.opset < 11:
        d.node("Pad", x, pads=pads, mode=mode, value=value)
        return
    names = [d.weight("p", np.array(pads, np.int64))]
    names.append("" if value is None else d.weight("v", np.float32(value)))
    names.append(d.weight("a", np.array(axes, d.one(np.int64, np.int32))) if axes else "")
    d.node("Pad", x, *names, mode=mode)


@draws
def gather(d: Draw) -> None:
    shape = d.shape(1, 2, 3, 4)
    axis = d.one(None, d.axis(len(shape)))
    n = shape[axis or 0]
    low = -n if d.opset >= 11 else 0
    shape_of = d.one((), (1,), (d.int(1, 5),), (d.int(1, 5),), (2, 2))
    indices = d.rng.integers(low, n, shape_of).astype(d.one(np.int64, np.int32))
    d.node("Gather", d.input("x", d.normal(*shape)), d.weight("i", indices), axis=axis)


@draws
def blocks(d: Draw) -> None:
    b = d.int(1, 3)
    n, c, h, w = d.ints(4, 1, 3)
    if d.maybe():
        mode = d.one(None, "DCR", "CRD") if d.opset >= 11 else None
        x = d.input("x", d.normal(n, c * b * b, h, w))
        d.node("DepthToSpace", x, blocksize=b, mode=mode)
    else:
        d.node("SpaceToDepth", d.input("x", d.normal(n, c, h * b, w * b)), blocksize=b)


@draws
def upsample(d: Draw) -> None:
    d.opset = d.one(7, 8, 9)
    n, c, h, w = d.ints(4, 1, 6)
    scales = [1.0, 1.0, d.one(1.0, 2.0, 1.5, 3.0), d.one(1.0, 2.0, 2.6)]
    x = d.input("x", d.normal(n, c, h, w))
    mode = d.one(None, "nearest", "linear")
    if d.opset < 9:
        d.node("Upsample", x, scales=scales, mode=mode)
    else:
        d.node("Upsample", x, d.weight("s", np.array(scales, np.float32)), mode=mode)


@draws
def resize(d: Draw) -> None:
    d.opset = max(d.opset, 10)
    shape = [d.int(1, 3), d.int(1, 3), d.int(1, 9), d.int(1, 9)]
    if d.maybe(0.2):
        shape = shape[1:]
    rank, mode = len(shape), d.one(None, "nearest", "linear", "linear")
    factors = (1.0, 2.0, 3.0, 0.5, 1.5, 0.7, 2.3)
    x = d.input("x", d.normal(*shape))
    scales = [*(1.0,) * (rank - 2), d.one(*factors), d.one(*factors)]
    if d.opset == 10:
        d.node("Resize", x, d.weight("s", np.array(scales, np.float32)), mode=mode)
        return
    coordinates = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", None]
    coordinates += ["half_pixel_symmetric"] * (d.opset >= 19)
    given: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": d.one(*coordinates)}
    if mode != "linear":
        rounding = (None, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        given["nearest_mode"] = d.one(*rounding)
    if d.maybe(0.2):
        given["exclude_outside"] = d.one(0, 1) if mode != "nearest" else 0
        given["extrapolation_value"] = 7.0
        given["cubic_coeff_a"] = -0.5
    axes = list(range(rank))
    if d.opset >= 18 and d.maybe():
        axes = d.one([rank - 2, rank - 1], [-2, -1], [-1], [-1, -2], [rank - 1])
        given["axes"] = axes
    region = d.one("empty", "ones", "absent")
    names = ["x", ""]
    if region == "ones":
        names[1] = d.weight("r", d.rng.random(2 * len(axes), np.float32))
    elif region == "empty" or d.opset < 13:
        names[1] = d.weight("r", np.zeros(0, np.float32))
    if d.maybe():
        names.append(d.weight("s", np.array([scales[a] for a in axes], np.float32)))
    else:
        if d.opset >= 18:
            given["keep_aspect_ratio_policy"] = d.one(None, "stretch", "not_larger", "not_smaller")
            # onnxruntime does not resize axes that policy and sign ask for both.
            given["axes"] = axes = [a % rank for a in axes]
        names.append("" if d.opset >= 13 else d.weight("s", np.zeros(0, np.float32)))
        sizes = [shape[a] if a % rank < rank - 2 else d.int(1, 12) for a in axes]
        names.append(d.weight("z", np.array(sizes, np.int64)))
    d.node("Resize", *names, **given)


def _window(d: Draw, space: list[int], dilated: bool) -> dict[str, Any]:
    rank = len(space)
    given: dict[str, Any] = {"kernel_shape": d.ints(rank, 1, 4)}
    if d.maybe(0.7):
        given["strides"] = d.ints(rank, 1, 3)
    padding = d.one("NOTSET", "none", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID")
    if padding == "pads":
        given["pads"] = d.ints(2 * rank, 0, 3)
    elif padding != "none":
        given["auto_pad"] = padding
    # onnxruntime has its own idea of SAME padding of dilated windows, or refuses it.
    if dilated and padding[:4] != "SAME" and d.maybe(0.4):
        given["dilations"] = d.ints(rank, 1, 3)
    return given


def _space(d: Draw) -> list[int]:
    return d.ints(d.one(1, 2, 2, 2), 1, 11)


@draws
def pool(d: Draw) -> None:
    operator, space = d.one("MaxPool", "AveragePool"), _space(d)
    given = _window(d, space, d.opset >= (10 if operator == "MaxPool" else 19))
    if d.opset >= 10 and d.maybe(0.6):
        given["ceil_mode"] = d.one(0, 1, 1)
    if operator == "AveragePool" and d.maybe():
        given["count_include_pad"] = d.one(0, 1)
    elif operator == "MaxPool" and d.opset >= 8 and d.maybe(0.2):
        given["storage_order"] = 0
    x = d.input("x", d.normal(d.int(1, 2), d.one(1, 3, 8, 17), *space))
    d.node(operator, x, **given)


@draws
def global_pool(d: Draw) -> None:
    x = d.input("x", d.normal(d.int(1, 2), d.one(1, 3, 8, 17), *_space(d)))
    d.node(d.one("GlobalMaxPool", "GlobalAveragePool"), x)


@draws
def conv(d: Draw) -> None:
    space, g = _space(d), d.one(1, 1, 2, 3)
    given = _window(d, space, True)
    c, oc = g * d.int(1, 5), g * d.int(1, 5)
    kernel = given["kernel_shape"]
    if d.maybe():
        del given["kernel_shape"]
    names = [d.input("x", d.normal(d.int(1, 2), c, *space))]
    names.append(d.weight("w", d.normal(oc, c // g, *kernel)))
    if d.maybe():
        names.append(d.weight("b", d.normal(oc)))
    d.node("Conv", *names, group=g if g > 1 or d.maybe() else None, **given)


@draws
def conv_transpose(d: Draw) -> None:
    space, g = _space(d), d.one(1, 1, 2)
    given, rank = _window(d, space, True), len(space)
    c, oc = g * d.int(1, 3), d.int(1, 3)
    kernel, stride = given["kernel_shape"], given.get("strides", [1] * rank)
    dilation = given.get("dilations", [1] * rank)
    if d.maybe():
        del given["kernel_shape"]
    if d.maybe(0.4):
        given["output_padding"] = [
            d.int(0, max(s, e) - 1) for s, e in zip(stride, dilation, strict=True)
        ]
    if d.maybe(0.3):
        sizes = zip(space, stride, kernel, dilation, strict=True)
        full = [(n - 1) * s + (k - 1) * e + 1 for n, s, k, e in sizes]
        given["output_shape"] = [max(1, n - d.int(-1, 5)) for n in full]
        if d.maybe():
            given.pop("pads", None)
    names = [d.input("x", d.normal(d.int(1, 2), c, *space))]
    names.append(d.weight("w", d.normal(c, oc, *kernel)))
    if d.maybe():
        names.append(d.weight("b", d.normal(oc * g)))
    d.node("ConvTranspose", *names, group=g if g > 1 else None, **given)


@draws
def batch_norm(d: Draw) -> None:
    shape = d.shape(2, 3, 4, 5)
    c = shape[1]
    values = [d.normal(c), d.normal(c), d.normal(c), d.rng.random(c, np.float32)]
    names = [d.weight(n, v) for n, v in zip(("s", "b", "m", "v"), values, strict=True)]
    given: dict[str, Any] = {"epsilon": d.one(None, 1e-3), "momentum": d.one(None, 0.5)}
    if d.opset < 9:
        given["spatial"] = d.one(None, 1)
    elif d.opset >= 14:
        given["training_mode"] = d.one(None, 0)
    d.node("BatchNormalization", d.input("x", d.normal(*shape)), *names, **given)


@draws
def instance_norm(d: Draw) -> None:
    shape = [d.int(1, 3), d.int(1, 4), *_space(d)]
    c = shape[1]
    names = [d.weight("s", d.normal(c)), d.weight("b", d.normal(c))]
    x = d.input("x", d.normal(*shape))
    d.node("InstanceNormalization", x, *names, epsilon=d.one(None, 1e-2))


@draws
def layer_norm(d: Draw) -> None:
    d.opset = max(d.opset, 17)
    shape = d.shape(2, 3, 4)
    axis = d.one(None, d.axis(len(shape)))
    tail = shape[-1 if axis is None else axis % len(shape) :]
    small = d.maybe(0.2)
    names = [d.weight("s", d.normal(*(tail[-1:] if small else tail)))]
    if d.maybe():
        names.append(d.weight("b", d.normal(*tail)))
    operator = "RMSNormalization" if d.opset >= 23 and d.maybe(0.4) else "LayerNormalization"
    if operator[0] == "R":
        names = names[:1]
    given = {"axis": axis, "epsilon": d.one(None, 1e-2)}
    d.node(operator, d.input("x", d.normal(*shape)), *names, **given)


@draws
def group_norm(d: Draw) -> None:
    d.opset = max(d.opset, 21)
    g = d.int(1, 3)
    c = g * d.int(1, 3)
    names = [d.weight("s", d.normal(c)), d.weight("b", d.normal(c))]
    x = d.input("x", d.normal(d.int(1, 2), c, *_space(d)))
    d.node("GroupNormalization", x, *names, num_groups=g, epsilon=d.one(None, 1e-2))


@draws
def lrn(d: Draw) -> None:
    given = {"alpha": d.one(None, 0.5), "beta": d.one(None, 0.5), "bias": d.one(None, 2.0)}
    x = d.input("x", d.normal(d.int(1, 2), d.int(1, 9), *_space(d)))
    d.node("LRN", x, size=d.one(1, 3, 5, 7), **given)


@draws
def dropout(d: Draw) -> None:
    x = d.input("x", d.normal(*d.shape(1, 2, 4)))
    if d.opset < 12:
        d.node("Dropout", x, ratio=d.one(None, 0.3))
    else:
        names = ["r"] * d.maybe()
        if names:
            d.weight("r", np.float32(0.4))
        if names and d.maybe():
            names.append(d.weight("t", np.bool_(False)))
        d.node("Dropout", x, *names)
