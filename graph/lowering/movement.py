"""Operators that move values without calculating, and interpolation."""

from __future__ import annotations

import math

from graph.lowering.site import Site, Unsupported, lowers
from graph.ops import (
    Cast,
    Concat,
    Expand,
    Gather,
    Identity,
    Pad,
    Reshape,
    Resize,
    Slice,
    Transpose,
)

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)


@lowers("Identity", "Dropout")
def _identity(site: Site) -> None:
    if site.has(2) and bool(site.constant(2, "training mode")):
        raise Unsupported("dropout in inference form: export the model for inference")
    site.finish(Identity(), site.inputs[0])


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(site: Site) -> None:
    if math.prod(site.shape(0)) != math.prod(site.result.shape):
        raise site.impossible(f"{site.shape(0)} cannot become {site.result.shape}")
    site.finish(Reshape(), site.inputs[0])


@lowers("Expand")
def _expand(site: Site) -> None:
    site.finish(Expand(), site.inputs[0])


@lowers("Cast")
def _cast(site: Site) -> None:
    site.finish(Cast(), site.inputs[0])


@lowers("Transpose")
def _transpose(site: Site) -> None:
    rank = len(site.shape(0))
    site.finish(Transpose(site.attribute("perm", tuple(reversed(range(rank))))), site.inputs[0])


@lowers("Concat")
def _concat(site: Site) -> None:
    site.finish(Concat(site.axis(0)), *site.inputs)


@lowers("Split")
def _split(site: Site) -> None:
    """One slice per part; the parts' sizes are those of the outputs."""
    axis, shape, start = site.axis(0), site.shape(0), 0
    zeros, ones = [0] * len(shape), (1,) * len(shape)
    for index, output in enumerate(site.outputs):
        size = site.output(index).shape
        starts = (*zeros[:axis], start, *zeros[axis + 1 :])
        if output:
            site.emit(Slice(starts, size, ones), site.inputs[0], output=output)
        start += size[axis]


@lowers("Slice")
def _slice(site: Site) -> None:
    shape = site.shape(0)
    first = site.ints("starts", 1, "starts") or ()
    axes = site.ints("axes", 3, "axes") or tuple(range(len(first)))
    by = site.ints("steps", 4, "steps") or (1,) * len(first)
    starts, steps = [0] * len(shape), [1] * len(shape)
    for axis, start, step in zip(axes, first, by, strict=True):
        size = shape[axis]
        start = start + size if start < 0 else start
        starts[axis] = min(max(start, 0), size if step > 0 else size - 1)
        steps[axis] = step
    site.finish(Slice(tuple(starts), site.result.shape, tuple(steps)), site.inputs[0])


@lowers("Pad")
def _pad(site: Site) -> None:
    rank = len(site.shape(0))
    given = site.ints("pads", 1, "pads") or ()
    axes = site.ints("axes", 3, "axes") or tuple(range(rank))
    padding = [0] * 2 * rank
    for index, axis in enumerate(axes):
        padding[axis % rank] = given[index]
        padding[axis % rank + rank] = given[index + len(axes)]
    mode = site.attribute("mode", "constant")
    if mode not in ("constant", "edge", "reflect"):
        raise Unsupported(f"padding by {mode!r}")
    site.finish(Pad(tuple(padding), mode, site.scalar("value", 2, 0.0)), site.inputs[0])


@lowers("Gather")
def _gather(site: Site) -> None:
    site.constant(1, "indices")
    site.finish(Gather(site.axis(0)), *site.inputs)


@lowers("DepthToSpace")
def _depth_to_space(site: Site) -> None:
    n, c, h, w = site.shape(0)
    b = int(site.attribute("blocksize", 1))
    if site.attribute("mode", "DCR") == "DCR":
        shape, order = (n, b, b, c // b**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        shape, order = (n, c // b**2, b, b, h, w), (0, 1, 4, 2, 5, 3)
    _through(site, shape, order)


@lowers("SpaceToDepth")
def _space_to_depth(site: Site) -> None:
    n, c, h, w = site.shape(0)
    b = int(site.attribute("blocksize", 1))
    blocks_first = site.attribute("mode", "DCR") == "DCR"
    order = (0, 3, 5, 1, 2, 4) if blocks_first else (0, 1, 3, 5, 2, 4)
    _through(site, (n, c, h // b, b, w // b, b), order)


def _through(site: Site, shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    x = site.emit(Reshape(), site.inputs[0], shape=shape)
    x = site.emit(Transpose(order), x, shape=tuple(shape[i] for i in order))
    site.finish(Reshape(), x)


@lowers("Upsample")
def _upsample(site: Site) -> None:
    mode = site.attribute("mode", "nearest")
    scales = site.floats("scales", 1)
    site.finish(Resize(mode, scales, "asymmetric", "floor"), site.inputs[0])


@lowers("Resize")
def _resize(site: Site) -> None:
    shape, out = site.shape(0), site.result.shape
    mode = site.attribute("mode", "nearest")
    if mode == "cubic":
        raise Unsupported("interpolation other than nearest and linear")
    if site.opset < 11:
        site.finish(Resize(mode, site.floats("scales", 1), "asymmetric", "floor"), site.inputs[0])
        return
    coordinates = site.attribute("coordinate_transformation_mode", "half_pixel")
    if coordinates not in _COORDINATES:
        raise Unsupported(f"coordinates other than {coordinates!r}")
    if site.attribute("antialias", 0) or (site.has(1) and site.constant(1, "region").size):
        raise Unsupported("resizing without antialiasing and region of interest")
    if site.has(3):
        scales = tuple(o / i for o, i in zip(out, shape, strict=True))
    else:
        axes = site.attribute("axes", tuple(range(len(shape))))
        given = dict(zip(axes, site.floats("scales", 2), strict=True))
        scales = tuple(given.get(i, 1.0) for i in range(len(shape)))
    rounding = site.attribute("nearest_mode", "round_prefer_floor") if mode == "nearest" else ""
    site.finish(Resize(mode, scales, coordinates, rounding), site.inputs[0])
