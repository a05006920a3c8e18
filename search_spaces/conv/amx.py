"""Products in tiles: the rows and panels of a task, tiles of a block of sums, who copies input."""

from __future__ import annotations

from fastrun.kernels.conv.amx import heuristic
from fastrun.kernels.conv.amx.schedule import Schedule, Window
from fastrun.kernels.conv.amx.sums import CHANNELS, fits
from fastrun.kernels.conv.amx.upright import upright
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.search_spaces.space import Space, upto


def space(p: ConvProblem, cpu: Cpu) -> Space:
    usual = heuristic(p, cpu)
    vectors = -(-p.group_oc // CHANNELS)
    window = Window.of(p, Io.of(p, usual.layout).src, usual.terms)
    copied = not window.in_place
    layouts = [usual.layout] if usual.layout == "NHWC" else ["NHWC", usual.layout]

    def leaves_tiles_for_operands(s: Schedule) -> bool:
        return fits(s.tiles, s.cols, s.terms)

    def has_the_channels(s: Schedule) -> bool:
        return s.cols <= vectors and (s.panels - 1) * s.cols < vectors

    def orders_several_panels(s: Schedule) -> bool:
        """With all panels in a task their order is that of tasks."""
        return not s.oc_outer or s.panels * s.cols < vectors

    def copies_little_again(s: Schedule) -> bool:
        """Each task of other panels would copy the same input."""
        return not s.strips or s.panels * s.cols >= vectors

    return Space(
        Schedule,
        {
            "layout": layouts,
            "rows": upto(upright(p).oh, *sorted({1, 2, 4, 7, 14, 28, 56, usual.rows})),
            "panels": upto(vectors, *sorted({1, 2, 4, 8, 16, usual.panels})),
            "tiles": [1, 2, 3],
            "cols": sorted({1, 2, 3, usual.cols}),
            "oc_outer": [False, True],
            "strips": [False, True] if copied else [False],
            "terms": [2, 3] if usual.terms == 2 else [usual.terms],
            "chunks": upto(window.chunks, *sorted({1, 2, 4, 8, 16, window.chunks, usual.chunks})),
            "stream": [False, True],
        },
        [
            leaves_tiles_for_operands,
            has_the_channels,
            orders_several_panels,
            copies_little_again,
        ],
    )
