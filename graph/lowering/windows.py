"""Operators that slide a window: convolutions, pools, and the normalisations between them."""

from __future__ import annotations

from graph.lowering.site import Site, Unsupported, lowers
from graph.model import Shape
from graph.ops import LRN, BatchNorm, Conv, ConvTranspose, Ints, Pool


@lowers("Conv")
def _conv(site: Site) -> None:
    x, weights = site.shape(0), site.shape(1)
    stride, dilation = _steps(site, "strides", x), _steps(site, "dilations", x)
    groups = int(site.attribute("group", 1))
    kernel = _kernel(site, weights)
    if weights[1] * groups != x[1] or weights[0] % groups:
        raise site.impossible(f"weights {weights} in {groups} groups do not fit {x[1]} channels")
    if site.has(2) and site.shape(2) != weights[:1]:
        raise site.impossible(f"a bias of shape {site.shape(2)} for {weights[0]} channels")
    padding = _padding(site, x[2:], kernel, stride, dilation)
    site.finish(Conv(stride, padding, dilation, groups), *site.inputs)


@lowers("ConvTranspose")
def _conv_transpose(site: Site) -> None:
    x, weights = site.shape(0), site.shape(1)
    rank = len(x) - 2
    stride, dilation = _steps(site, "strides", x), _steps(site, "dilations", x)
    kernel = _kernel(site, weights)
    extra = site.attribute("output_padding", (0,) * rank)
    out = site.result.shape[2:]
    begins, ends = list(site.attribute("pads", (0,) * 2 * rank)[:rank]), []
    for i in range(rank):
        full = (x[2 + i] - 1) * stride[i] + _span(kernel[i], dilation[i])
        cut = full + extra[i] - out[i]
        if site.attribute("output_shape", ()) or site.attribute("auto_pad", "NOTSET") != "NOTSET":
            upper = site.attribute("auto_pad", "NOTSET") == "SAME_UPPER"
            begins[i] = cut // 2 if upper else cut - cut // 2
        ends.append(full - begins[i] - out[i])
    if min(begins, default=0) < 0:
        raise Unsupported("an output shape no larger than the full result")
    groups = int(site.attribute("group", 1))
    site.finish(ConvTranspose(stride, (*begins, *ends), dilation, groups), *site.inputs)


@lowers("MaxPool", "AveragePool")
def _pool(site: Site) -> None:
    x = site.shape(0)
    stride, dilation = _steps(site, "strides", x), _steps(site, "dilations", x)
    kernel = tuple(site.attribute("kernel_shape", ()))
    if len(kernel) != len(x) - 2:
        raise site.impossible(f"kernel {kernel} for an input of shape {x}")
    site.finish(
        Pool(
            "max" if site.operator == "MaxPool" else "average",
            kernel,
            stride,
            _padding(site, x[2:], kernel, stride, dilation),
            dilation,
            ceil=bool(site.attribute("ceil_mode", 0)),
            count_padding=bool(site.attribute("count_include_pad", 0)),
        ),
        site.inputs[0],
    )


@lowers("GlobalMaxPool", "GlobalAveragePool")
def _global_pool(site: Site) -> None:
    space = site.shape(0)[2:]
    ones, zeros = (1,) * len(space), (0,) * 2 * len(space)
    function = "max" if site.operator == "GlobalMaxPool" else "average"
    site.finish(Pool(function, space, ones, zeros, ones), site.inputs[0])


@lowers("BatchNormalization")
def _batch_norm(site: Site) -> None:
    if site.attribute("training_mode", 0) or not site.attribute("spatial", 1):
        raise Unsupported("batch normalisation in inference form: export the model for inference")
    site.finish(BatchNorm(float(site.attribute("epsilon", 1e-5))), *site.inputs)


@lowers("LRN")
def _lrn(site: Site) -> None:
    op = LRN(
        int(site.attribute("size", 1)),
        float(site.attribute("alpha", 1e-4)),
        float(site.attribute("beta", 0.75)),
        float(site.attribute("bias", 1.0)),
    )
    site.finish(op, *site.inputs)


def _steps(site: Site, attribute: str, x: Shape) -> Ints:
    """Strides or dilations: one per spatial axis, 1 unless given."""
    if len(x) < 3:
        raise site.impossible(f"an input of shape {x} has no spatial axes")
    if len(x) > 4:
        raise Unsupported(f"one or two spatial axes instead of {len(x) - 2}")
    steps = tuple(site.attribute(attribute, ())) or (1,) * (len(x) - 2)
    if len(steps) != len(x) - 2 or min(steps) < 1:
        raise site.impossible(f"{attribute} {steps} for an input of shape {x}")
    return steps


def _kernel(site: Site, weights: Shape) -> Ints:
    kernel = weights[2:]
    if len(weights) != len(site.shape(0)):
        raise site.impossible(f"weights {weights} for an input of shape {site.shape(0)}")
    if tuple(site.attribute("kernel_shape", kernel)) != kernel:
        raise site.impossible(f"kernel_shape {site.attribute('kernel_shape', ())} is not {kernel}")
    return kernel


def _padding(site: Site, space: Shape, kernel: Ints, stride: Ints, dilation: Ints) -> Ints:
    """All begins, then all ends, with `auto_pad` worked out."""
    rank, mode = len(space), site.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        padding = tuple(site.attribute("pads", ())) or (0,) * 2 * rank
        if len(padding) != 2 * rank or min(padding) < 0:
            raise site.impossible(f"pads {padding}")
        return padding
    if mode == "VALID":
        return (0,) * 2 * rank
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise site.impossible(f"auto_pad {mode!r}")
    totals = [
        max((-(-size // s) - 1) * s + _span(k, d) - size, 0)
        for size, k, s, d in zip(space, kernel, stride, dilation, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)


def _span(kernel: int, dilation: int) -> int:
    return (kernel - 1) * dilation + 1
