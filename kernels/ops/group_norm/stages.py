"""The stages of the kernel: sums of pieces, of channels, of groups, and the result."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from fastrun.kernels.codegen.builder import Index, Kernel, Module, Vec, fma
from fastrun.kernels.codegen.epilogue import activate
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.ops.group_norm.cut import Cut
from fastrun.kernels.ops.group_norm.piece import Piece, branch


def sum_pieces(module: Module, cut: Cut) -> None:
    """The mean and the squared deviations of every channel in every piece."""

    @module.stage("group_sums", cut.tasks)
    def write(k: Kernel, task: Index) -> None:
        for pieces, units in product(cut.pieces, cut.units):
            with branch(k, cut, task, pieces, units) as piece:
                means = [x * (1 / piece.pixels) for x in piece.totals(lambda x, j: x)]
                for squared, values in ((False, means), (True, _squares(piece, means))):
                    target = cut.found(k, squared).at(piece.image, piece.number)
                    for j, value in enumerate(values):
                        target.store(value, 0, 0, piece.channel(j))


def _squares(piece: Piece, means: Sequence[Vec]) -> list[Vec]:
    """The sums of squared deviations from the means of the columns."""
    wide = [piece.wide(x) for x in means]
    return piece.totals(lambda x, j: (x - wide[j]) * (x - wide[j]))


def join_pieces(module: Module, cut: Cut, epsilon: float | None = None) -> None:
    """The mean and the squared deviations of every channel.

    With `epsilon` a channel is a group, so that its factor takes the place of the deviations.
    """
    vectors = cut.width // cut.joined

    @module.stage("group_pieces", cut.src.n * vectors)
    def write(k: Kernel, task: Index) -> None:
        image, channel = task // vectors, task % vectors * cut.joined
        means, squares = (cut.found(k, x).at(image, 0, channel) for x in (False, True))
        acc = k.tile(1, 2, cut.joined)
        acc.fill(k.const(0.0, cut.joined))
        with k.loop(cut.lines) as line:
            for run in cut.pieces:
                with k.times(run.count) as i:
                    number = line * cut.per_line + run.number + i
                    mean = means.load(0, number, 0, lanes=cut.joined)
                    acc[0, 0] = acc[0, 0] + mean * (run.size / cut.pixels)
        with k.loop(cut.lines) as line:
            for run in cut.pieces:
                with k.times(run.count) as i:
                    number = line * cut.per_line + run.number + i
                    apart = means.load(0, number, 0, lanes=cut.joined) - acc[0, 0]
                    inside = squares.load(0, number, 0, lanes=cut.joined)
                    acc[0, 1] = acc[0, 1] + (apart * apart * run.size + inside)
        found = acc[0, 1]
        if epsilon is not None:
            found = _factor(k, found * (1 / cut.pixels), epsilon)
        cut.of_channels(k, False).store(acc[0, 0], image, channel)
        cut.of_channels(k, True).store(found, image, channel)


def join_channels(module: Module, cut: Cut, groups: int, epsilon: float) -> None:
    """The mean of every group, and its factor, in the places of its channels."""
    size = cut.src.c // groups

    @module.stage("group_channels", cut.src.n * groups)
    def write(k: Kernel, task: Index) -> None:
        image, first = task // groups, task % groups * size
        means, factors = (cut.of_channels(k, x).at(image, first) for x in (False, True))
        acc = k.tile(1, 2, 1)
        acc.fill(k.const(0.0, 1))
        with k.loop(size) as c:
            acc[0, 0] = acc[0, 0] + means.load(0, c, lanes=1) * (1 / size)
        with k.loop(size) as c:
            apart = means.load(0, c, lanes=1) - acc[0, 0]
            acc[0, 1] = acc[0, 1] + (apart * apart * cut.pixels + factors.load(0, c, lanes=1))
        factor = _factor(k, acc[0, 1] * (1 / (size * cut.pixels)), epsilon)
        with k.loop(size) as c:
            means.store(acc[0, 0], 0, c)
            factors.store(factor, 0, c)


def _factor(k: Kernel, variance: Vec, epsilon: float) -> Vec:
    deviation = k.intrinsic("sqrt", variance + epsilon)
    return k.const(1.0, deviation.lanes) / deviation


def normalise(module: Module, cut: Cut, activation: str) -> None:
    """The result, from the means and factors of channels."""

    @module.stage("group_norm", cut.tasks)
    def write(k: Kernel, task: Index) -> None:
        for pieces, units in product(cut.pieces, cut.units):
            with branch(k, cut, task, pieces, units) as piece:
                _normalise(piece, activation)


def _normalise(piece: Piece, activation: str) -> None:
    k, cut = piece.k, piece.cut
    means, factors = (cut.of_channels(k, x).at(piece.image).strided(1) for x in (False, True))
    scales, shifts = (k.argument("weights", 1, offset=x) for x in (0, cut.width + READ_SLACK))
    mean, factor, scale, shift = (
        [piece.of_channel(where, j) for j in range(piece.columns)]
        for where in (means, factors, scales, shifts)
    )
    factor = [a * b for a, b in zip(factor, scale, strict=True)]
    piece.replace(lambda x, j: activate(fma(x - mean[j], factor[j], shift[j]), activation))
