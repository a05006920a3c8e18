"""Lowers operators that interpolate: Resize, Upsample, which is its older form, GridSample."""

from __future__ import annotations

import numpy as np

from fastrun.graph.core.model import Shape
from fastrun.graph.core.ops import GridSample, Identity, Ints, MatMul, Resize
from fastrun.graph.frontend.lowering.filters import Filters
from fastrun.graph.frontend.lowering.site import Site, Unsupported, lowers

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")

# One for each axis, in ONNX's type: sizes and ties depend on its rounding.
_Scales = tuple[np.float32, ...]


@lowers("Upsample")
def _upsample(site: Site) -> None:
    scales = _scales(site, 1, _all_axes(site))
    _interpolate(site, site.inputs[0], scales, "asymmetric", "floor")


@lowers("GridSample")
def _grid_sample(site: Site) -> None:
    x, grid = site.shape(0), site.shape(1)
    if len(x) != 4:
        raise Unsupported("images with two axes of pixels")
    if len(grid) != 4 or (grid[0], grid[-1]) != (x[0], 2):
        raise site.impossible(f"points {grid} in images {x}")
    mode = site.attribute("mode", "linear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    padding = site.attribute("padding_mode", "zeros")
    if mode not in ("nearest", "linear", "cubic"):
        raise site.impossible(f"mode {mode!r}")
    if padding not in ("zeros", "border", "reflection"):
        raise site.impossible(f"padding_mode {padding!r}")
    corners = bool(site.attribute("align_corners", 0))
    site.finish(GridSample(mode, padding, corners), *site.inputs)


@lowers("Resize")
def _resize(site: Site) -> None:
    if site.opset < 11:
        _first_resize(site)
        return
    coordinates = site.attribute("coordinate_transformation_mode", "half_pixel")
    if coordinates not in _COORDINATES:
        raise Unsupported(f"coordinates other than {coordinates!r}")
    rounding = site.attribute("nearest_mode", "round_prefer_floor")
    if rounding not in _ROUNDINGS:
        raise site.impossible(f"nearest_mode {rounding!r}")
    axes = tuple(map(site.from_front, site.attribute("axes", _all_axes(site))))
    if site.has(3) and site.shape(3) != (0,):
        scales, shape = _fitted(site, axes)
        _interpolate(site, site.inputs[0], scales, coordinates, rounding, shape)
    else:
        _interpolate(site, site.inputs[0], _scales(site, 2, axes), coordinates, rounding)


def _first_resize(site: Site) -> None:
    """Resize in opset 10: the lower of the nearest pixels to enlarge, the upper one to reduce."""
    scales, x = _scales(site, 1, _all_axes(site)), site.inputs[0]
    one = np.float32(1)
    if max(scales) > 1 > min(scales) and site.attribute("mode", "nearest") == "nearest":
        larger = tuple(max(scale, one) for scale in scales)
        scales = tuple(min(scale, one) for scale in scales)
        op = Resize("nearest", tuple(map(float, larger)), "asymmetric", "floor")
        x = site.emit(op, x, shape=_scaled(site.shape(0), larger))
    rounding = "ceil" if min(scales) < 1 else "floor"
    _interpolate(site, x, scales, "asymmetric", rounding)


def _interpolate(
    site: Site,
    x: str,
    scales: _Scales,
    coordinates: str,
    rounding: str,
    shape: Shape | None = None,
) -> None:
    """Finish with an interpolation of x to `shape`, by default the scaled shape of x."""
    mode = site.attribute("mode", "nearest")
    if mode not in ("nearest", "linear", "cubic"):
        raise site.impossible(f"mode {mode!r}")
    if mode == "cubic" or (mode == "linear" and site.attribute("antialias", 0)):
        _by_products(site, x, scales, coordinates, shape or _scaled(site.shape_of(x), scales))
        return
    op = Resize(mode, tuple(map(float, scales)), coordinates, rounding if mode == "nearest" else "")
    site.finish(op, x, shape=shape or _scaled(site.shape_of(x), scales))


def _by_products(site: Site, x: str, scales: _Scales, coordinates: str, shape: Shape) -> None:
    """Finish with a product for each of the last two axes: its matrix has the filter's weights."""
    before = site.shape_of(x)
    axes = [i for i, scale in enumerate(scales) if before[i] != shape[i] or scale != 1]
    if any(axis < len(shape) - 2 for axis in axes) or len(shape) < 2:
        raise Unsupported("cubic or antialiased resizing of the last two axes alone")
    for axis in axes:
        filters = Filters(
            site.attribute("mode", "nearest"),
            coordinates,
            float(site.attribute("cubic_coeff_a", -0.75)),
            bool(site.attribute("antialias", 0)),
            bool(site.attribute("exclude_outside", 0)),
        )
        matrix = filters.matrix(before[axis], shape[axis], float(scales[axis])).astype(np.float32)
        last = axis == len(shape) - 1
        operands = (x, site.put(matrix.T.copy())) if last else (site.put(matrix), x)
        x = site.emit(MatMul(), *operands)
    site.finish(Identity(), x)


def _all_axes(site: Site) -> Ints:
    return tuple(range(len(site.shape(0))))


def _scales(site: Site, index: int, axes: Ints) -> _Scales:
    """The scales of all axes: some are given as input or attribute, the others are 1."""
    given = np.array(site.floats("scales", index), np.float32)
    if len(given) != len(axes) or not (given > 0).all():
        raise site.impossible(f"scales {given.tolist()} for {len(axes)} axes")
    by_axis = dict(zip(axes, given, strict=True))
    return tuple(by_axis.get(axis, np.float32(1)) for axis in _all_axes(site))


def _scaled(shape: Shape, scales: _Scales) -> Shape:
    return tuple(int(np.float32(n) * scale) for n, scale in zip(shape, scales, strict=True))


def _fitted(site: Site, axes: Ints) -> tuple[_Scales, Shape]:
    """The scales of all axes and the shape of the result, if some axes have given sizes.

    A policy may keep the aspect ratio: these axes then share the smallest or the largest scale.
    """
    shape, sizes = list(site.shape(0)), site.ints("sizes", 3, "sizes") or ()
    if len(sizes) != len(axes) or min(sizes) < 1:
        raise site.impossible(f"sizes {sizes} for {len(axes)} axes")
    policy = site.attribute("keep_aspect_ratio_policy", "stretch")
    scales = [np.float32(1)] * len(shape)
    for axis, size in zip(axes, sizes, strict=True):
        scales[axis] = np.float32(size) / np.float32(shape[axis])
    if policy != "stretch":
        choose = {"not_larger": min, "not_smaller": max}.get(policy)
        if choose is None:
            raise site.impossible(f"keep_aspect_ratio_policy {policy!r}")
        common = choose(scales[axis] for axis in axes)
        sizes = tuple(int(np.floor(common * np.float32(shape[a]) + np.float32(0.5))) for a in axes)
        for axis in axes:
            scales[axis] = common
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return tuple(scales), tuple(shape)
