"""Experiment 1: im2col of a block of pixels at a time against im2col of the whole image.

    python -m fastrun.benchmarks.experiments.im2col [--quick] [--json OUT] [--csv FOLDER]

Both sides unfold, pack and multiply with the same register tile, each in its best layout, NCHW or
NHWC. Whole: the whole image at once. Blocked: half, once or twice as many pixels at a time as the
formula for the L2 cache gives. Both are measured with a separate packing step, as in the textbook,
and with unfolding straight into packed panels. All channels are unfolded together: K is not cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastrun.benchmarks.experiments.command import Column, Part, command, show_pairs
from fastrun.benchmarks.experiments.pairs import Findings, race_layers
from fastrun.kernels.codegen.tile_choice import best_tile
from fastrun.kernels.conv.im2col import template
from fastrun.kernels.conv.im2col.forms import pixel_lanes
from fastrun.kernels.conv.im2col.schedule import Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.networks.targets import merged, read_target
from fastrun.tuner.terminal.exits import ended, leave

LAYOUTS = ("NCHW", "NHWC")
PACKS = ("separate", "fused")
NETWORKS = ("resnet18", "vgg16", "squeezenet1.1")


def measure(quick: bool = False, networks: Sequence[str] = NETWORKS) -> Findings:
    """A row for each layer and way to pack; `before` is whole, `after` blocked."""

    def sides(p: ConvProblem, pack: str) -> tuple[list[str], list[str]]:
        whole, fused = [p.oh * p.ow], pack == "fused"
        return schedules(p, LAYOUTS, whole, fused), schedules(p, LAYOUTS, blocks(p), fused)

    return race_layers(layers(quick, networks), "pack", PACKS, sides, quick)


def layers(quick: bool = False, networks: Sequence[str] = NETWORKS) -> list[ConvProblem]:
    """The distinct convolutions of networks for which im2col applies."""
    if quick:
        return [ConvProblem.parse("conv 1x16x14x14 32x3x3 s1 p1 bias relu")]
    plain = [
        replace(p, bias=True, add=False, activation="relu")
        for p, _ in merged(map(read_target, networks))
        if isinstance(p, ConvProblem) and template.refusal(p, Cpu.host()) is None
    ]
    return list(dict.fromkeys(plain))


def schedules(
    p: ConvProblem, layouts: Sequence[str], blocks: Sequence[int], fused: bool
) -> list[str]:
    """im2col with these layouts and numbers of pixels, and the heuristic's register tile."""
    return [
        template.text(replace(on_tile(p, layout), block=block, fused=fused))
        for layout in layouts
        for block in blocks
    ]


def on_tile(p: ConvProblem, layout: str) -> Schedule:
    """The heuristic's schedule in this layout."""
    cpu = Cpu.host()
    found: Schedule = template.heuristic(p, cpu)
    if layout == "NCHW":
        return found
    rows, _, cols = best_tile(p.oh * p.ow, 1, -(-p.group_oc // cpu.lanes), cpu)
    return replace(found, layout=layout, rows=rows, cols=cols, unroll=4)


def blocks(p: ConvProblem) -> list[int]:
    """Half, once and twice the formula's value, as far as that is less than all pixels."""
    cpu, pixels = Cpu.host(), p.oh * p.ow
    formula = template.heuristic(p, cpu).block
    lanes = pixel_lanes(p, cpu)
    found = {max(lanes, formula * num // den) for num, den in ((1, 2), (1, 1), (2, 1))}
    return sorted(b for b in found if b < pixels) or [max(lanes, pixels // 2)]


_ABOUT: dict[str, Column] = {"layer": lambda r: r.layer, "pack": lambda r: r.pack}

show_table = show_pairs(_ABOUT, "whole", "blocked", by="pack", memory=True)

main = command("im2col", __doc__, [Part("im2col", measure, show_table)])

if __name__ == "__main__":
    leave(ended("im2col", main))
