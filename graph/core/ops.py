"""The operators of a graph and their parameters. ONNX's several forms of an operator become one.

A tuple over space has one entry per spatial axis; padding lists all begins, then all ends. Every
operator but `Onnx` and `Foreign` has one output, and the graph knows its shape: `Reshape` therefore
also stands for flatten, squeeze and unsqueeze. Operators of `Activating` may apply an `activation`
to their result: one of `kernels.core.problem.ACTIVATIONS`, or "" for none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Operators whose parameters are those of their kernel.
from fastrun.kernels.ops.attention import Attention as Attention
from fastrun.kernels.ops.attention import Heads as Heads
from fastrun.kernels.ops.elementwise import Binary as Binary
from fastrun.kernels.ops.elementwise import Clip as Clip
from fastrun.kernels.ops.elementwise import Unary as Unary
from fastrun.kernels.ops.elementwise import Where as Where
from fastrun.kernels.ops.grid_sample import GridSample as GridSample
from fastrun.kernels.ops.group_norm import GroupNorm as GroupNorm
from fastrun.kernels.ops.layer_norm import LayerNorm as LayerNorm
from fastrun.kernels.ops.lrn import LRN as LRN
from fastrun.kernels.ops.movement import Pad as Pad
from fastrun.kernels.ops.ranks import TopK as TopK
from fastrun.kernels.ops.recurrent import Recurrent as Recurrent
from fastrun.kernels.ops.reduce import Reduce as Reduce
from fastrun.kernels.ops.reduce import Softmax as Softmax
from fastrun.kernels.ops.rotary import Rotary as Rotary
from fastrun.kernels.ops.sampling import Resize as Resize
from fastrun.kernels.ops.scans import ArgReduce as ArgReduce
from fastrun.kernels.ops.scans import CumSum as CumSum

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """`activation(conv(x) + bias + add)` of x, weights (oc, c / groups, *kernel), bias, add.

    Bias and add are optional: an absent one is "" or left out at the end.
    """

    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int = 1
    activation: str = ""


@dataclass(frozen=True)
class DepthwiseVolume:
    """`activation(conv(x) + bias)` of x (n, c, d, h, w), weights (c, 1, *kernel), optional bias.

    Each channel has a filter of its own.
    """

    stride: Ints
    padding: Ints
    dilation: Ints
    activation: str = ""


@dataclass(frozen=True)
class ConvTranspose:
    """Transposed convolution of x, weights (c, oc / groups, *kernel) and an optional bias.

    Padding is cut off the full result; a negative end appends zeros (ONNX's output padding).
    """

    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int = 1
    activation: str = ""


@dataclass(frozen=True)
class Pool:
    """Maximum or average over windows; `ceil` keeps a last window that is partly outside.

    With `count_padding` an average counts padded zeros, but never the pixels that `ceil` adds.
    """

    function: str
    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    ceil: bool = False
    count_padding: bool = False


@dataclass(frozen=True)
class BatchNorm:
    """`(x - mean) / sqrt(variance + epsilon) * scale + shift`, per channel (axis 1).

    Inputs are x, scale, shift, mean, variance.
    """

    epsilon: float


@dataclass(frozen=True)
class Affine:
    """`activation(x * scale + shift)` per channel (axis 1), of x, scale (c,), shift (c,)."""

    activation: str = ""


@dataclass(frozen=True)
class Link:
    """A part of a `ByteFunction`: an operator of values and numbers, and what its result becomes.

    An operand is a number, or the index of a value: 0 is that of the function's input, 1 the result
    of its first link, and so on. With `rounding`, a scale and a zero point, the result is rounded
    to the numbers of u8 that they stand for.
    """

    op: Unary | Clip | Binary
    operands: tuple[int | float, ...]
    rounding: tuple[float, int] | None = None


@dataclass(frozen=True)
class ByteFunction:
    """A function of each value of one tensor, computed link by link; the last gives the result.

    The input can have no more than 256 values, since it is rounded to a grid of bytes.
    """

    links: tuple[Link, ...]


@dataclass(frozen=True)
class Gemm:
    """`alpha * a @ b + beta * c` of a, b and an optional c; a or b may be transposed first."""

    alpha: float = 1.0
    beta: float = 1.0
    transpose_a: bool = False
    transpose_b: bool = False
    activation: str = ""


@dataclass(frozen=True)
class MatMul:
    """`a @ b + c` of the last two axes of a, b and an optional c, the others broadcast."""

    activation: str = ""


@dataclass(frozen=True)
class Concat:
    """All inputs one after another along one axis."""

    axis: int


@dataclass(frozen=True)
class Slice:
    """`sizes[i]` values of every axis i, from `starts[i]` in steps of `steps[i]`."""

    starts: Ints
    sizes: Ints
    steps: Ints


@dataclass(frozen=True)
class Transpose:
    """Output axis i is input axis `order[i]`."""

    order: Ints


@dataclass(frozen=True)
class ChannelShuffle:
    """Channel `j * groups + i` of the result is channel `i * (c / groups) + j` of x."""

    groups: int


@dataclass(frozen=True)
class DepthToSpace:
    """Channels become blocks of `size` pixels: channel (place in the block, c) of x gives c there.

    Places are counted row by row. It is ONNX's operator in its mode DCR, on any number of axes.
    `crop` elements are cut off at both ends of each axis: none, or half of `size`.
    """

    size: Ints
    crop: Ints = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop", self.crop or (0,) * len(self.size))


@dataclass(frozen=True)
class Reshape:
    """The same values in row-major order, in the output's shape."""


@dataclass(frozen=True)
class Expand:
    """Broadcast to the output's shape."""


@dataclass(frozen=True)
class Gather:
    """Entries of x along one axis, at the indices given by the second input."""

    axis: int


@dataclass(frozen=True)
class GatherElements:
    """Elements of x: each index says where along one axis that of its own place lies."""

    axis: int


@dataclass(frozen=True)
class GatherND:
    """Entries of x at points: the last axis of the indices has a number for each of x's axes.

    The first `batch` axes are those of the indices too.
    """

    batch: int


@dataclass(frozen=True)
class Cast:
    """Conversion to the output's dtype."""


@dataclass(frozen=True)
class Identity:
    """x itself; dropout in inference is one too."""


@dataclass(frozen=True)
class Onnx:
    """An ONNX operator that the operators here do not express.

    `model` is a serialised ONNX model of one node. It reads the k-th input of our node by the name
    `operand(k)`; outer values that graphs inside the node read are further inputs. Its outputs are
    those of our node: the ones that are read. `need` says why there is no kernel; it is no part of
    what the operator is.
    """

    operator: str
    model: bytes
    need: str = field(default="", repr=False, compare=False)


def operand(index: int) -> str:
    """The name by which the model of an `Onnx` operator reads an input of our node."""
    return f"operand {index}"


@dataclass(frozen=True)
class Numpy:
    """`op`, computed by NumPy between kernels, because there is no kernel for this use of it.

    Its inputs and outputs may have any element type, and shapes that depend on data.
    """

    op: Op


@dataclass(frozen=True)
class Foreign:
    """An ONNX operator, or a use of one, that this package lacks.

    `need` says what is missing, `convolves` whether the operator is or contains a convolution.
    """

    operator: str
    need: str
    convolves: bool = False


Op = (
    Conv | DepthwiseVolume | ConvTranspose | Pool | BatchNorm | Affine | LRN | LayerNorm
    | GroupNorm | Attention | Rotary | Recurrent | Unary | Clip | Binary | ByteFunction | Where
    | Softmax | Gemm | MatMul | Reduce | ArgReduce | TopK | CumSum | Concat | Slice | Pad
    | Transpose | ChannelShuffle | DepthToSpace | Reshape | Expand | Gather | GatherElements
    | GatherND | Resize | GridSample | Cast | Identity | Onnx | Numpy | Foreign
)  # fmt: skip

# Operators that can apply an activation to their result.
Activating = Conv | DepthwiseVolume | ConvTranspose | Affine | GroupNorm | Binary | Gemm | MatMul
