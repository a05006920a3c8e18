"""Sampling of images at computed points: ONNX's GridSample, of images with two axes of pixels.

The points of a vector are found first: for each pixel that they are mixed of, its offset, its
share and whether it is inside the image. Then the channels follow. Where these lie side by side,
vectors hold channels and each point is read without gathering; else vectors hold points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Module, Vec, fma
from fastrun.kernels.codegen.elementary import absolute, combine, compare
from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.strided_loops import (
    Nest,
    aligned,
    load_row,
    operand,
    rows,
    singly,
    store_row,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, I32
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check, check_f32

# Elements of an image up to which offsets fit into 32 bits.
_LARGEST = 2**31 - 1
_CUBIC = -0.75  # the parameter of the cubic kernel, as in ONNX and PyTorch
UNROLL = 2


@dataclass(frozen=True)
class GridSample:
    """Images (n, c, h, w) at the points (column, row) of a grid (n, height, width, 2).

    Points run from -1 to 1: over the centres of the outermost pixels if `corners`, else over their
    edges. `mode` is nearest, linear or cubic. `padding` says what lies outside: zeros, the border,
    or the reflection at it. As in PyTorch, with cubic interpolation each pixel outside is padded,
    not the point.
    """

    mode: str = "linear"
    padding: str = "zeros"
    corners: bool = False


@identified
def grid_sample(
    spec: GridSample,
    cpu: Cpu,
    src: Strided,
    add: Strided,
    dst: Strided,
    arguments: tuple[str, str] = ("src", "add"),
) -> Program:
    """Sample `src` at the points of the grid `add`; `dst` is (n, c, height, width).

    `arguments` names the kernel's arguments that hold them. A constant is in "weights", row-major.

    Raises:
        ScheduleError: a name is unknown, the shapes do not fit, an image is too large, or a tensor
            is not of f32.
    """
    check_f32("sampling at points", src, add, dst)
    check(spec.mode in _TAPS, f"unknown interpolation {spec.mode!r}")
    check(spec.padding in ("zeros", "border", "reflection"), f"unknown padding {spec.padding!r}")
    n, c, h, w = src.shape
    fits = add.shape == (n, *dst.shape[2:], 2) and dst.shape[:2] == (n, c)
    check(fits, f"{src.shape} at points {add.shape} cannot give {dst.shape}")
    check(src.extent <= _LARGEST, f"an image of {src.shape} is too large")
    pixels = (n, *dst.shape[2:])
    out, points, images = aligned(
        Strided(pixels, (dst.strides[0], *dst.strides[2:]), dst.offset),
        Strided(pixels, add.strides[:3], add.offset),
        Strided(pixels, (src.strides[0], 0, 0), src.offset),
    )
    # A row lies in one image, unless each image is one pixel.
    if images.strides[-1]:
        out, points, images = (
            replace(v, shape=(*v.shape, 1), strides=(*v.strides, 0)) for v in (out, points, images)
        )
    *outer, length = out.shape
    tiles = [*singly(tuple(outer)), rows(length, cpu.lanes, 1)]
    module, nest = Module(cpu), Nest(tiles, work=c)
    together = src.strides[1] == dst.strides[1] == 1 and c > 1

    @nest.stage(module, "grid_sample")
    def write_grid_sample(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                grid = operand(k, arguments[1], points).at(*places, x)
                image = operand(k, arguments[0], images).at(*places, x).strided(1)
                target = operand(k, "dst", out).at(*places, x)
                lanes = cpu.lanes_for(run.size)
                step = points.strides[-1]
                taps = []
                for axis, size in ((1, h), (0, w)):
                    at = load_row(grid.strided(1).at(axis * add.strides[3]), step, run.size, lanes)
                    taps.append(_taps(spec, at, size, src.strides[3 - axis]))
                write = _by_channels if together else _by_points
                write(k, taps, image, target, (src, dst), run.size, out.strides[-1])

    buffers = dict(zip(arguments, (src.buffer, add.buffer), strict=True))
    return module.program(Io.named(buffers, dst.buffer))


@dataclass(frozen=True)
class _Tap:
    """A pixel along an axis that each point is mixed of: its offset in elements and its share.

    `inside` is a mask; "" if all points lie inside. A share of None is 1.
    """

    offset: Vec
    share: Vec | None
    inside: str


def _taps(spec: GridSample, point: Vec, size: int, stride: int) -> list[_Tap]:
    """The pixels along an axis of `size` pixels, `stride` elements apart."""
    # As other engines compute it in float32, so that the nearest pixel is theirs, too.
    at = (point + 1.0) * 0.5 * (size - 1) if spec.corners else ((point + 1.0) * size - 1.0) * 0.5
    if spec.mode != "cubic" and spec.padding != "zeros":
        at = _padded(spec, at, size)
    taps = []
    for place, share in _TAPS[spec.mode](at):
        inside = ""
        if spec.padding == "zeros":
            inside = _both(
                point, compare("oge", place, 0.0), compare("ole", place, float(size - 1))
            )
        elif spec.mode == "cubic":
            place = point.k.intrinsic("roundeven", _padded(spec, place, size))
        offset = _limited(place, size).to(I32) * stride
        taps.append(_Tap(offset, share, inside))
    return taps


def _limited(at: Vec, size: int) -> Vec:
    """Coordinates in the image: those outside move to its border, NaN to its first pixel."""
    zero = at.k.const(0.0, at.lanes)
    return at.k.blend(compare("ogt", at, 0.0), at, zero).min(float(size - 1))


def _padded(spec: GridSample, at: Vec, size: int) -> Vec:
    """Coordinates moved into the image; NaN stays."""
    k = at.k
    if spec.padding == "reflection":
        low, high = (0.0, size - 1.0) if spec.corners else (-0.5, size - 0.5)
        span = high - low
        if span == 0:
            return at * 0.0
        away = absolute(at - low)
        turns = k.intrinsic("floor", away / span)
        rest = fma(turns, k.const(-span, at.lanes), away)
        half = turns * 0.5
        even = compare("oeq", k.intrinsic("floor", half), half)
        at = k.blend(even, rest + low, rest * -1.0 + high)
    return at.max(0.0).min(float(size - 1))


def _nearest(at: Vec) -> list[tuple[Vec, Vec | None]]:
    return [(at.k.intrinsic("roundeven", at), None)]


def _linear(at: Vec) -> list[tuple[Vec, Vec | None]]:
    low = at.k.intrinsic("floor", at)
    share = at - low
    return [(low, share * -1.0 + 1.0), (low + 1.0, share)]


def _cubic(at: Vec) -> list[tuple[Vec, Vec | None]]:
    """Four pixels with their shares by the cubic convolution kernel (Keys 1981)."""
    low, a = at.k.intrinsic("floor", at), _CUBIC
    share = at - low

    def near(d: Vec) -> Vec:
        return (d * (a + 2) - (a + 3)) * d * d + 1.0

    def far(d: Vec) -> Vec:
        return ((d * a - 5 * a) * d + 8 * a) * d - 4 * a

    rest = share * -1.0 + 1.0
    shares = [far(share + 1.0), near(share), near(rest), far(rest + 1.0)]
    return [(low + float(i), s) for i, s in zip(range(-1, 3), shares, strict=True)]


_TAPS: dict[str, Callable[[Vec], list[tuple[Vec, Vec | None]]]] = {
    "nearest": _nearest,
    "linear": _linear,
    "cubic": _cubic,
}


def _by_points(
    k: Kernel,
    taps: Sequence[list[_Tap]],
    image: Buffer,
    target: Buffer,
    views: tuple[Strided, Strided],
    count: int,
    step: int,
) -> None:
    """The channels one after another; a vector holds `count` points, `step` elements apart."""
    src, dst = views
    with k.times(src.shape[1]) as channel:
        source = image.strided(src.strides[1]).at(channel)
        total: Vec | None = None
        for down in taps[0]:
            row: Vec | None = None
            for across in taps[1]:
                found = _gathered(source, down, across)
                row = _mixed(row, found, across.share)
            assert row
            total = _mixed(total, row, down.share)
        assert total
        store_row(target.strided(dst.strides[1]).at(channel).strided(step), step, count, total)


def _mixed(total: Vec | None, value: Vec, share: Vec | None) -> Vec:
    if share is None:
        return value
    return value * share if total is None else fma(value, share, total)


def _gathered(source: Buffer, down: _Tap, across: _Tap) -> Vec:
    """The elements at the offsets of two taps; zero outside."""
    k, offsets = source.k, down.offset + across.offset
    n, bits = offsets.lanes, vector_type(offsets.lanes, "i1")
    mask = _both(offsets, down.inside, across.inside)
    if n == 1:
        place = k.emit(f"getelementptr float, ptr {source.base}, i32 {offsets.ssa}")
        value = Buffer(k, place, (1,)).load(0, lanes=1)
        return k.blend(mask, value, k.const(0.0, 1)) if mask else value
    places = k.emit(f"getelementptr float, ptr {source.base}, {offsets.type} {offsets.ssa}")
    floats, name = vector_type(n), f"llvm.masked.gather.v{n}f32.v{n}p0"
    k.declare(f"declare {floats} @{name}(<{n} x ptr>, {bits}, {floats})")
    everywhere = "<" + ", ".join(["i1 true"] * n) + ">"
    text = (
        f"call {floats} @{name}(<{n} x ptr> align 4 {places}, "
        f"{bits} {mask or everywhere}, {floats} zeroinitializer)"
    )
    return Vec(k, k.emit(text), n)


def _both(like: Vec, a: str, b: str) -> str:
    """The lanes of two masks; "" is all lanes."""
    if not (a and b):
        return a or b
    return combine("and", like, a, b)


def _by_channels(
    k: Kernel,
    taps: Sequence[list[_Tap]],
    image: Buffer,
    target: Buffer,
    views: tuple[Strided, Strided],
    count: int,
    step: int,
) -> None:
    """The points one after another; vectors hold channels, which lie side by side."""
    pairs = [(down, across) for down in taps[0] for across in taps[1]]
    lanes, shared = pairs[0][0].offset.lanes, pairs[0][0].share is not None
    masked = bool(pairs[0][0].inside)
    offsets, inside = (k.scratch(len(pairs) * lanes, lanes, 1, dtype=I32) for _ in range(2))
    shares = k.scratch(len(pairs) * lanes, lanes, 1)
    for i, (down, across) in enumerate(pairs):
        offsets.store(down.offset + across.offset, i, 0)
        if down.share and across.share:
            shares.store(down.share * across.share, i, 0)
        if masked:
            bits = vector_type(lanes, "i1")
            mask = _both(down.offset, down.inside, across.inside)
            words = k.emit(f"sext {bits} {mask} to {vector_type(lanes, 'i32')}")
            inside.store(Vec(k, words, lanes, I32), i, 0)
    channels = views[0].shape[1]
    with k.times(count) as point:
        sources = [image.at(offsets.index(i, point)) for i in range(len(pairs))]
        goal = target.strided(step).at(point).strided(1)
        for tiles in rows(channels, k.lanes, UNROLL):
            with tiles.loop(k) as first:
                for start in range(0, tiles.size, k.lanes):
                    left = min(k.lanes, tiles.size - start)
                    wide = k.cpu.lanes_for(left)
                    total: Vec | None = None
                    for i, source in enumerate(sources):
                        value = source.load(first + start, lanes=wide)
                        if masked:
                            value = _kept(value, inside.splat(i, point, lanes=wide))
                        share = shares.splat(i, point, lanes=wide) if shared else None
                        total = _mixed(total, value, share)
                    assert total
                    goal.store_first(total, left, first + start)


def _kept(value: Vec, mask: Vec) -> Vec:
    """The value where the mask's bits are set, else zero."""
    bits = value.bits_as(I32)
    kept = value.k.emit(f"and {bits.type} {bits.ssa}, {mask.ssa}")
    return Vec(value.k, kept, value.lanes, I32).bits_as(F32)
