"""Normalisation over groups of channels and all pixels, with scale and shift, in one kernel.

A plane is cut into pieces that stay in a cache while mean and squared deviations are summed in a
pass each. What pieces and channels found is joined without cancellation (Chan, Golub and LeVeque,
1979). So the tensor is read from memory twice: for the sums, and to be normalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrun.kernels.codegen.builder import Module
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import READ_SLACK, Array, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check, check_f32
from fastrun.kernels.ops.group_norm.cut import Cut
from fastrun.kernels.ops.group_norm.stages import (
    join_channels,
    join_pieces,
    normalise,
    sum_pieces,
)


@dataclass(frozen=True)
class GroupNorm:
    """`activation((x - mean) / sqrt(variance + epsilon) * scale + shift)` by groups of channels.

    Mean and variance are those of a group's neighbouring channels at all pixels of an image. Inputs
    are x, scale and shift, the latter of c values each. With a channel in each group this is
    instance normalisation.
    """

    groups: int
    epsilon: float
    activation: str = ""


@identified
def build(spec: GroupNorm, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Normalise every image of `src`. The weights are scale and shift, (2, c).

    Raises:
        ScheduleError: the tensors differ in shape or layout, groups do not divide the channels, or
            a tensor is not of f32.
    """
    check_f32("group normalisation", src, dst)
    shape = (dst.n, dst.c, dst.h, dst.w)
    alike = (src.n, src.c, src.h, src.w) == shape and src.layout == dst.layout
    check(alike, f"group normalisation cannot turn {src} into {dst}")
    check(src.c % spec.groups == 0, f"{spec.groups} groups do not divide {src.c} channels")
    module = Module(cpu)
    cut = Cut.of(cpu, src, dst)
    sum_pieces(module, cut)
    if src.c == spec.groups:
        join_pieces(module, cut, spec.epsilon)
    else:
        join_pieces(module, cut)
        join_channels(module, cut, spec.groups, spec.epsilon)
    normalise(module, cut, spec.activation)
    return module.program(
        Io(src, dst, dst),
        lambda weights: _packed(weights, cut.width),
        shared_bytes=F32.bytes(cut.room + READ_SLACK),
    )


def _packed(weights: Array, width: int) -> Array:
    """Scale and shift, each with zeros behind: missing channels of a block become zero."""
    both = np.zeros((2, width + READ_SLACK), np.float32)
    both[:, : weights.shape[1]] = weights
    return both.reshape(-1)
