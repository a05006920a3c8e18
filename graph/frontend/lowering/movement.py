"""Lowers operators that move values without calculating."""

from __future__ import annotations

import math

import numpy as np

from fastrun.graph.core.model import Shape
from fastrun.graph.core.ops import (
    Cast,
    Concat,
    Expand,
    Gather,
    GatherND,
    Identity,
    Ints,
    Pad,
    Reshape,
    Slice,
    Transpose,
    Where,
)
from fastrun.graph.frontend.lowering.site import Site, Unsupported, lowers


@lowers("Identity", "Dropout")
def _identity(site: Site) -> None:
    if site.has(2) and bool(site.constant(2, "training mode")):
        raise Unsupported("dropout in inference form: export the model for inference")
    site.finish(Identity(), site.inputs[0])


@lowers("Reshape")
def _reshape(site: Site) -> None:
    if math.prod(site.shape(0)) != math.prod(site.result.shape):
        raise site.impossible(f"{site.shape(0)} cannot become {site.result.shape}")
    site.finish(Reshape(), site.inputs[0], shape=site.result.shape)


@lowers("Flatten")
def _flatten(site: Site) -> None:
    shape, axis = site.shape(0), int(site.attribute("axis", 1))
    if not -len(shape) <= axis <= len(shape):
        raise site.impossible(f"{shape} has no axis {axis}")
    axis = axis + len(shape) if axis < 0 else axis
    rows, columns = math.prod(shape[:axis]), math.prod(shape[axis:])
    site.finish(Reshape(), site.inputs[0], shape=(rows, columns))


@lowers("Unsqueeze")
def _unsqueeze(site: Site) -> None:
    shape, axes = site.shape(0), site.ints("axes", 1, "axes") or ()
    rank = len(shape) + len(axes)
    places = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(places) < len(axes):
        raise site.impossible(f"new axes {axes} of {rank} in all")
    sizes = iter(shape)
    wide = tuple(1 if axis in places else next(sizes) for axis in range(rank))
    site.finish(Reshape(), site.inputs[0], shape=wide)


@lowers("Squeeze")
def _squeeze(site: Site) -> None:
    """Without axes, or with an empty list of them, all axes of size 1 are removed."""
    shape = site.shape(0)
    ones = tuple(axis for axis, n in enumerate(shape) if n == 1)
    axes = {site.from_front(axis) for axis in site.ints("axes", 1, "axes") or ones}
    if not axes <= {*ones}:
        raise site.impossible(f"{shape} without axes {sorted(axes)}")
    kept = tuple(n for axis, n in enumerate(shape) if axis not in axes)
    site.finish(Reshape(), site.inputs[0], shape=kept)


@lowers("Expand")
def _expand(site: Site) -> None:
    shape = site.result.shape
    try:
        fits = np.broadcast_shapes(site.shape(0), shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise site.impossible(f"{site.shape(0)} cannot become {shape}")
    site.finish(Expand(), site.inputs[0], shape=shape)


@lowers("Tile")
def _tile(site: Site) -> None:
    """Every repeated axis gets a new one in front of it, along which it is broadcast."""
    shape, repeats = site.shape(0), tuple(map(int, site.constant(1, "repeats").reshape(-1)))
    if len(repeats) != len(shape) or min(repeats, default=1) < 0:
        raise site.impossible(f"repeats {repeats} of {shape}")
    several = [repeat != 1 for repeat in repeats]
    narrow = [k for n, new in zip(shape, several, strict=True) for k in [1] * new + [n]]
    wide = [k for n, r in zip(shape, repeats, strict=True) for k in [r] * (r != 1) + [n]]
    x = site.emit(Reshape(), site.inputs[0], shape=tuple(narrow))
    x = site.emit(Expand(), x, shape=tuple(wide))
    site.finish(Reshape(), x, shape=tuple(n * r for n, r in zip(shape, repeats, strict=True)))


@lowers("Cast")
def _cast(site: Site) -> None:
    kinds = site.tensor(0).dtype, site.result.dtype
    if any(kind.isbuiltin != 1 or kind.kind not in "biuf" for kind in kinds):
        raise Unsupported("elements that are numbers of 8 bits or more")
    site.finish(Cast(), site.inputs[0])


@lowers("Where")
def _where(site: Site) -> None:
    """A constant condition that always holds, or never, chooses one operand."""
    if site.is_constant(0):
        condition = site.constant(0, "condition")
        if condition.all() or not condition.any():
            chosen = site.inputs[1 if condition.all() else 2]
            site.finish(Expand(), chosen, shape=site.result.shape)
            return
    if any(site.tensor(i).dtype.kind not in "biuf" for i in (1, 2)):
        raise Unsupported("elements that are numbers of 8 bits or more")
    site.finish(Where(), *site.inputs)


@lowers("CastLike")
def _cast_like(site: Site) -> None:
    kinds = site.tensor(0).dtype, site.tensor(1).dtype
    if any(kind.isbuiltin != 1 or kind.kind not in "biuf" for kind in kinds):
        raise Unsupported("elements that are numbers of 8 bits or more")
    site.finish(Cast() if kinds[0] != kinds[1] else Identity(), site.inputs[0])


@lowers("Transpose")
def _transpose(site: Site) -> None:
    rank = len(site.shape(0))
    site.finish(Transpose(site.attribute("perm", tuple(reversed(range(rank))))), site.inputs[0])


@lowers("Concat")
def _concat(site: Site) -> None:
    parts = [x for i, x in enumerate(site.inputs) if 0 not in site.shape(i)]
    site.finish(Concat(site.axis(0)), *(parts or site.inputs))


@lowers("Split")
def _split(site: Site) -> None:
    """One slice for each part."""
    axis, shape = site.axis(0), site.shape(0)
    sizes = site.ints("split", 1, "sizes") or _even(shape[axis], len(site.outputs))
    count = site.attribute("num_outputs", len(site.outputs))
    if not len(sizes) == len(site.outputs) == count or sum(sizes) != shape[axis] or min(sizes) < 0:
        raise site.impossible(f"an axis of {shape[axis]} cannot be split into {sizes}")
    ones, start = (1,) * len(shape), 0
    for size, output in zip(sizes, site.outputs, strict=True):
        starts = tuple(start if i == axis else 0 for i in range(len(shape)))
        part = tuple(size if i == axis else n for i, n in enumerate(shape))
        if output:
            site.emit(Slice(starts, part, ones), site.inputs[0], output=output)
        start += size


def _even(size: int, parts: int) -> Ints:
    """The sizes of equal parts; the last one may be smaller."""
    each = -(-size // parts)
    return (*(each,) * (parts - 1), size - each * (parts - 1))


@lowers("Slice")
def _slice(site: Site) -> None:
    shape = site.shape(0)
    first, last = site.ints("starts", 1, "starts") or (), site.ints("ends", 2, "ends") or ()
    axes = site.ints("axes", 3, "axes") or tuple(range(len(first)))
    by = site.ints("steps", 4, "steps") or (1,) * len(first)
    if not len(first) == len(last) == len(axes) == len(by) or 0 in by:
        raise site.impossible(f"starts {first}, ends {last}, axes {axes}, steps {by}")
    ranges = [range(n) for n in shape]
    for axis, start, end, step in zip(map(site.from_front, axes), first, last, by, strict=True):
        ranges[axis] = range(shape[axis])[start:end:step]
    op = Slice(
        tuple(r.start for r in ranges), tuple(map(len, ranges)), tuple(r.step for r in ranges)
    )
    site.finish(op, site.inputs[0])


@lowers("Pad")
def _pad(site: Site) -> None:
    shape = site.shape(0)
    rank = len(shape)
    given = site.ints("pads", 1, "pads") or ()
    axes = site.ints("axes", 3, "axes") or tuple(range(rank))
    if len(given) != 2 * len(axes):
        raise site.impossible(f"pads {given} for {len(axes)} axes")
    mode = site.attribute("mode", "constant")
    if mode not in ("constant", "edge", "reflect"):
        raise Unsupported(f"padding other than {mode!r}")
    padding = [0] * 2 * rank
    for index, axis in enumerate(map(site.from_front, axes)):
        before, after = given[index], given[index + len(axes)]
        kept = shape[axis] + min(before, 0) + min(after, 0)
        # Repeating an edge needs one pixel. A reflection adds at most all pixels but the edge.
        most = {"edge": math.inf if kept > 0 else 0, "reflect": kept - 1}.get(mode, math.inf)
        if kept < 0 or max(before, after, 0) > max(most, 0):
            raise site.impossible(f"{mode} padding by {before} and {after} of {shape[axis]}")
        padding[axis], padding[axis + rank] = before, after
    site.finish(Pad(tuple(padding), mode, site.scalar("value", 2, 0.0)), site.inputs[0])


@lowers("Gather")
def _gather(site: Site) -> None:
    axis, size = site.axis(0), site.shape(0)[site.axis(0)]
    if not site.is_constant(1):
        if any(site.tensor(i).dtype.kind not in "biuf" for i in (0, 1)):
            raise Unsupported("elements that are numbers of 8 bits or more")
        site.finish(Gather(axis), *site.inputs)
        return
    indices = site.constant(1, "indices")
    if indices.size and not -size <= indices.min() <= indices.max() < size:
        raise site.impossible(f"an index is outside an axis of {size}")
    if indices.ndim == 1 or (indices.ndim and site.is_constant(0)):
        site.finish(Gather(axis), *site.inputs)
        return
    if indices.ndim:  # a kernel reads a list of indices
        listed = site.put(np.ascontiguousarray(indices.reshape(-1)))
        site.finish(
            Reshape(), site.emit(Gather(axis), site.inputs[0], listed), shape=site.result.shape
        )
        return
    shape = site.shape(0)  # a single index: one entry, without the axis
    starts = tuple(int(indices) % size if i == axis else 0 for i in range(len(shape)))
    entry = (*shape[:axis], 1, *shape[axis + 1 :])
    x = site.emit(Slice(starts, entry, (1,) * len(shape)), site.inputs[0])
    site.finish(Reshape(), x, shape=(*shape[:axis], *shape[axis + 1 :]))


@lowers("GatherND")
def _gather_nd(site: Site) -> None:
    """At constant points: entries of the table with its axes in one; maybe all in their order."""
    shape, places, batch = site.shape(0), site.shape(1), int(site.attribute("batch_dims", 0))
    end = batch + (places[-1] if places else 0)
    fits = 0 <= batch < len(places) and end <= len(shape) and shape[:batch] == places[:batch]
    if not fits or end == batch:
        raise site.impossible(f"{places} indices of {shape} with {batch} axes in common")
    if site.tensor(0).dtype.kind not in "biuf" or 0 in (*shape, *places):
        raise Unsupported("elements that are numbers of 8 bits or more, at least one")
    if not site.is_constant(1) or site.is_constant(0):
        site.finish(GatherND(batch), *site.inputs)
        return
    indices, sizes = site.constant(1, "indices"), np.array(shape[batch:end])
    if not np.all((-sizes <= indices) & (indices < sizes)):
        raise site.impossible(f"an index is outside of {shape}")
    points = np.where(indices < 0, indices + sizes, indices).reshape(-1, end - batch)
    each = math.prod(places[batch:-1])
    image = np.arange(math.prod(shape[:batch])).repeat(each)
    entries = image * math.prod(sizes) + np.ravel_multi_index(tuple(points.T), tuple(sizes))
    x = site.emit(Reshape(), site.inputs[0], shape=(math.prod(shape[:end]), *shape[end:]))
    if not np.array_equal(entries, np.arange(math.prod(shape[:end]))):
        x = site.emit(Gather(0), x, site.put(entries.astype(np.int64)))
    site.finish(Reshape(), x, shape=site.result.shape)


@lowers("DepthToSpace")
def _depth_to_space(site: Site) -> None:
    (n, c, h, w), b = _blocks(site)
    if c % b**2:
        raise site.impossible(f"{c} channels in blocks of {b} x {b}")
    if site.attribute("mode", "DCR") == "DCR":
        shape, order = (n, b, b, c // b**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        shape, order = (n, c // b**2, b, b, h, w), (0, 1, 4, 2, 5, 3)
    _through(site, shape, order, (n, c // b**2, h * b, w * b))


@lowers("SpaceToDepth")
def _space_to_depth(site: Site) -> None:
    (n, c, h, w), b = _blocks(site)
    if h % b or w % b:
        raise site.impossible(f"{h} x {w} pixels in blocks of {b} x {b}")
    blocks_first = site.attribute("mode", "DCR") == "DCR"
    order = (0, 3, 5, 1, 2, 4) if blocks_first else (0, 1, 3, 5, 2, 4)
    _through(site, (n, c, h // b, b, w // b, b), order, (n, c * b**2, h // b, w // b))


def _blocks(site: Site) -> tuple[Shape, int]:
    """The shape of the images, and the size of their blocks."""
    shape, size = site.shape(0), int(site.attribute("blocksize", 0))
    if len(shape) != 4 or size < 1:
        raise site.impossible(f"blocks of {size} for an input of shape {shape}")
    return shape, size


def _through(site: Site, shape: Shape, order: Ints, result: Shape) -> None:
    x = site.emit(Reshape(), site.inputs[0], shape=shape)
    site.finish(Reshape(), site.emit(Transpose(order), x), shape=result)
