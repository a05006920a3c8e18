"""The operators a graph is made of: one form each, whatever form ONNX wrote.

Tuples over space have one entry per spatial axis; padding lists all begins, then all ends.
Every operator has one output, whose shape the graph knows; so there is one `Reshape` and no
flatten, squeeze or unsqueeze. What computes by sums of products may apply an `activation` to its
result: one of `kernels.core.problem.ACTIVATIONS`, or none.
"""

from __future__ import annotations

from dataclasses import dataclass

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """`activation(conv(x) + bias + add)` of x, weights (oc, c / groups, *kernel), bias, add.

    Bias and add are optional inputs: missing ones are "" or left out at the end.
    """

    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int = 1
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

    `count_padding` makes the average count the padded zeros, but never what `ceil` adds.
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
    """`x * scale + shift` per channel (axis 1), of x, scale (c,), shift (c,)."""

    activation: str = ""


@dataclass(frozen=True)
class LRN:
    """Local response normalisation across `size` channels."""

    size: int
    alpha: float
    beta: float
    bias: float


@dataclass(frozen=True)
class Unary:
    """A function of one value, by its lower-case ONNX name; also `relu6`, `silu`, `gelu_tanh`.

    `alpha` and `beta` are the parameters to which ONNX gives these names; gamma is `beta`.
    """

    function: str
    alpha: float = 0.0
    beta: float = 0.0


@dataclass(frozen=True)
class Clip:
    """x limited to low..high."""

    low: float
    high: float


@dataclass(frozen=True)
class Binary:
    """`add`, `sub`, `mul`, `div`, `pow`, `max`, `min` or `prelu`, broadcast as numpy does."""

    function: str
    activation: str = ""


@dataclass(frozen=True)
class Softmax:
    """Softmax along one axis, or its logarithm."""

    axis: int
    log: bool = False


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
class Reduce:
    """`mean`, `sum`, `max`, `min` or `l2` over some axes."""

    function: str
    axes: Ints


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
class Pad:
    """Padding per axis in `mode` constant, edge or reflect; a negative amount crops."""

    padding: Ints
    mode: str = "constant"
    value: float = 0.0


@dataclass(frozen=True)
class Transpose:
    """Output axis i is input axis `order[i]`."""

    order: Ints


@dataclass(frozen=True)
class ChannelShuffle:
    """Channel `j * groups + i` of the result is channel `i * (c / groups) + j` of x."""

    groups: int


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
class Resize:
    """Nearest or linear interpolation; `scales` (output / input) has one entry per axis.

    `coordinates` maps an output pixel to the input and `rounding` picks the nearest one, by the
    names of ONNX's Resize.
    """

    mode: str
    scales: tuple[float, ...]
    coordinates: str
    rounding: str = ""


@dataclass(frozen=True)
class Cast:
    """Conversion to the output's dtype."""


@dataclass(frozen=True)
class Identity:
    """x itself; also what dropout is in inference."""


@dataclass(frozen=True)
class Foreign:
    """An ONNX operator, or a use of one, that this package lacks.

    `need` says what is missing; `convolves` whether it is, or contains, a convolution.
    """

    operator: str
    need: str
    convolves: bool = False


Op = (
    Conv
    | ConvTranspose
    | Pool
    | BatchNorm
    | Affine
    | LRN
    | Unary
    | Clip
    | Binary
    | Softmax
    | Gemm
    | MatMul
    | Reduce
    | Concat
    | Slice
    | Pad
    | Transpose
    | ChannelShuffle
    | Reshape
    | Expand
    | Gather
    | Resize
    | Cast
    | Identity
    | Foreign
)

# What can apply an activation to its result.
Activating = Conv | ConvTranspose | Affine | Binary | Gemm | MatMul
