"""Lowers operators that slide a window: convolutions, pools, and normalisations between them."""

from __future__ import annotations

import math

import numpy as np

from fastrun.graph.core.model import Shape
from fastrun.graph.core.ops import (
    LRN,
    BatchNorm,
    Binary,
    Conv,
    ConvTranspose,
    Ints,
    Pool,
    Reduce,
    Reshape,
)
from fastrun.graph.core.shapes import full_size, sees_pixels, spans
from fastrun.graph.frontend.lowering.computed import convolve_computed
from fastrun.graph.frontend.lowering.site import Site, Unsupported, lowers
from fastrun.graph.frontend.lowering.volumes import (
    convolve_volume,
    pool_volume,
    transpose_volume,
)

# Pixels of a pool's window. Larger ones come from damaged files: no picture has so many.
_LARGEST_WINDOW = 2**28
_AUTO_PAD = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@lowers("Conv")
def _conv(site: Site) -> None:
    x, weights = site.shape(0), site.shape(1)
    stride, dilation = _steps(site, "strides", x), _steps(site, "dilations", x)
    groups = int(site.attribute("group", 1))
    kernel = _kernel(site, weights)
    if groups < 1 or weights[1] * groups != x[1] or weights[0] % groups:
        raise site.impossible(f"weights {weights} in {groups} groups do not fit {x[1]} channels")
    _check_bias(site, weights[0])
    padding = _padding(site, x[2:], kernel, stride, dilation)
    op = Conv(stride, padding, dilation, groups)
    if len(kernel) == 3 and _is_fixed(site):
        convolve_volume(site, op)
    elif len(kernel) > 2:
        raise Unsupported("one or two spatial axes, or three with constant weights")
    elif not site.is_constant(1) and _is_float(site):
        convolve_computed(site, op)
    elif site.has(2) and not site.is_constant(2) and _is_float(site):
        y = site.emit(op, *site.inputs[:2])
        wide = (weights[0], *(1,) * len(kernel))
        site.finish(Binary("add"), y, site.emit(Reshape(), site.inputs[2], shape=wide))
    else:
        site.finish(op, *site.inputs)


@lowers("ConvTranspose")
def _conv_transpose(site: Site) -> None:
    x, weights = site.shape(0), site.shape(1)
    rank = len(x) - 2
    stride, dilation = _steps(site, "strides", x), _steps(site, "dilations", x)
    kernel = _kernel(site, weights)
    groups = int(site.attribute("group", 1))
    if weights[0] != x[1] or groups < 1 or x[1] % groups:
        raise site.impossible(f"weights {weights} in {groups} groups do not fit {x[1]} channels")
    _check_bias(site, weights[1] * groups)
    extra = tuple(site.attribute("output_padding", ())) or (0,) * rank
    if len(extra) != rank or min(extra) < 0:
        raise site.impossible(f"output_padding {extra} for an input of shape {x}")
    whole = full_size(x[2:], spans(kernel, dilation), stride)
    full = tuple(n + e for n, e in zip(whole, extra, strict=True))
    begins, ends = _cuts(site, x[2:], full, stride)
    ends = [end - e for end, e in zip(ends, extra, strict=True)]
    op = ConvTranspose(stride, (*begins, *ends), dilation, groups)
    if rank == 3 and _is_float(site) and _is_fixed(site):
        transpose_volume(site, op)
    else:
        site.finish(op, *site.inputs)


def _cuts(site: Site, space: Shape, full: Shape, stride: Ints) -> tuple[list[int], list[int]]:
    """The pixels to cut off at the begin and at the end of every axis of the full result."""
    mode, wanted = site.attribute("auto_pad", "NOTSET"), tuple(site.attribute("output_shape", ()))
    if not wanted and mode in ("NOTSET", "VALID"):
        padding = _padding(site, space, full, stride, stride)
        return list(padding[: len(space)]), list(padding[len(space) :])
    if mode not in _AUTO_PAD:
        raise site.impossible(f"auto_pad {mode!r}")
    if wanted:
        # The result may be larger than `full`, by less than a stride.
        if len(wanted) != len(space) or any(
            w >= f + s for w, f, s in zip(wanted, full, stride, strict=True)
        ):
            raise site.impossible(f"output_shape {wanted}, as the whole result is {full}")
    else:
        wanted = tuple(min(n * s, f) for n, s, f in zip(space, stride, full, strict=True))
    cuts = [f - w for f, w in zip(full, wanted, strict=True)]
    small = [max(cut, 0) // 2 for cut in cuts]
    begins = (
        small
        if mode == "SAME_UPPER"
        else [max(cut, 0) - s for cut, s in zip(cuts, small, strict=True)]
    )
    return begins, [cut - b for cut, b in zip(cuts, begins, strict=True)]


@lowers("MaxPool", "AveragePool")
def _pool(site: Site) -> None:
    x = site.shape(0)
    stride, dilation = _steps(site, "strides", x), _steps(site, "dilations", x)
    kernel = tuple(site.attribute("kernel_shape", ()))
    if len(kernel) != len(x) - 2 or min(kernel) < 1 or math.prod(kernel) > _LARGEST_WINDOW:
        raise site.impossible(f"kernel {kernel} for an input of shape {x}")
    op = Pool(
        "max" if site.operator == "MaxPool" else "average",
        kernel,
        stride,
        _padding(site, x[2:], kernel, stride, dilation),
        dilation,
        ceil=site.attribute("ceil_mode", 0) == 1,
        count_padding=bool(site.attribute("count_include_pad", 0)),
    )
    by_planes = len(kernel) == 3 and site.tensor(0).dtype == np.float32
    if not by_planes:
        site.finish(op, site.inputs[0])
    try:
        sees = sees_pixels(op, x[2:])
    except ValueError as error:
        raise site.impossible(str(error)) from None
    if not sees:
        raise Unsupported("windows each of which has a pixel of the input")
    if by_planes:
        pool_volume(site, op)


@lowers("GlobalMaxPool", "GlobalAveragePool")
def _global_pool(site: Site) -> None:
    space = site.shape(0)[2:]
    if not space:
        raise site.impossible(f"an input of shape {site.shape(0)} has no spatial axes")
    if len(space) > 2 and _is_float(site):
        axes, whole = tuple(range(2, len(space) + 2)), (*site.shape(0)[:2], *(1,) * len(space))
        kind = "max" if site.operator == "GlobalMaxPool" else "mean"
        site.finish(Reduce(kind, axes), site.inputs[0], shape=whole)
        return
    ones, zeros = (1,) * len(space), (0,) * 2 * len(space)
    function = "max" if site.operator == "GlobalMaxPool" else "average"
    site.finish(Pool(function, space, ones, zeros, ones), site.inputs[0])


@lowers("BatchNormalization")
def _batch_norm(site: Site) -> None:
    if site.attribute("training_mode", 0) or not site.attribute("spatial", 1):
        raise Unsupported("batch normalisation in inference form: export the model for inference")
    channels = site.shape(0)[1:2]
    if any(site.shape(i) != channels for i in range(1, len(site.inputs))):
        raise site.impossible(f"parameters of other shapes than {channels}")
    site.finish(BatchNorm(float(site.attribute("epsilon", 1e-5))), *site.inputs)


@lowers("LRN")
def _lrn(site: Site) -> None:
    size = int(site.attribute("size", 1))
    if size < 1 or len(site.shape(0)) < 2:
        raise site.impossible(f"{size} channels of an input of shape {site.shape(0)}")
    op = LRN(
        size,
        float(site.attribute("alpha", 1e-4)),
        float(site.attribute("beta", 0.75)),
        float(site.attribute("bias", 1.0)),
    )
    site.finish(op, *site.inputs)


def _is_float(site: Site) -> bool:
    """Whether kernels compute the first input's type."""
    return site.tensor(0).dtype == np.float32


def _is_fixed(site: Site) -> bool:
    """Whether weights and bias do not depend on data."""
    return site.is_constant(1) and (not site.has(2) or site.is_constant(2))


def _steps(site: Site, attribute: str, x: Shape) -> Ints:
    """Strides or dilations: one per spatial axis, 1 unless given."""
    if len(x) < 3:
        raise site.impossible(f"an input of shape {x} has no spatial axes")
    steps = tuple(site.attribute(attribute, ())) or (1,) * (len(x) - 2)
    if len(steps) != len(x) - 2 or min(steps) < 1:
        raise site.impossible(f"{attribute} {steps} for an input of shape {x}")
    return steps


def _check_bias(site: Site, channels: int) -> None:
    if site.has(2) and site.shape(2) != (channels,):
        raise site.impossible(f"a bias of shape {site.shape(2)} for {channels} channels")


def _kernel(site: Site, weights: Shape) -> Ints:
    kernel = weights[2:]
    if len(weights) != len(site.shape(0)):
        raise site.impossible(f"weights {weights} for an input of shape {site.shape(0)}")
    if tuple(site.attribute("kernel_shape", kernel)) != kernel:
        raise site.impossible(f"kernel_shape {site.attribute('kernel_shape', ())} is not {kernel}")
    return kernel


def _padding(site: Site, space: Shape, kernel: Ints, stride: Ints, dilation: Ints) -> Ints:
    """The padding that `pads` or `auto_pad` gives: all begins, then all ends."""
    rank, mode = len(space), site.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        padding = tuple(site.attribute("pads", ())) or (0,) * 2 * rank
        if len(padding) != 2 * rank or min(padding) < 0:
            raise site.impossible(f"pads {padding}")
        return padding
    if mode == "VALID":
        return (0,) * 2 * rank
    if mode not in _AUTO_PAD:
        raise site.impossible(f"auto_pad {mode!r}")
    totals = [
        (-(-size // s) - 1) * s + window - size
        for size, window, s in zip(space, spans(kernel, dilation), stride, strict=True)
    ]
    if min(totals) < -1:
        # ONNX does not say whether anything is cut off at the begin.
        raise Unsupported(f"pads in the place of {mode}, as strides exceed the kernel")
    totals = [max(total, 0) for total in totals]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)
