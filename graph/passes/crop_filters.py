"""A pass that drops the outer taps of filters that meet nothing but padding.

A 3x3 filter of dilation 24 has one tap on an image of 20x20, as DeepLab's widest have on small
images; a 3x3 filter on one pixel is a dense layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.passes.edit import Edit


def crop_filters(graph: Graph) -> Graph:
    """Let the constant filters of convolutions begin and end with taps that meet their images."""
    edit = Edit(graph)
    for node in edit:
        op, weights, shape = node.op, None, edit.shape(node.input(0))
        if isinstance(op, Conv):
            weights = edit.constants.get(node.input(1))
        if weights is None or shape is None:
            continue
        assert isinstance(op, Conv)
        rank, outputs = len(op.stride), edit.tensor(node.output).shape[2:]
        axes = [
            _Axis(shape[2 + i], outputs[i], op.stride[i], op.dilation[i]).cropped(
                weights.shape[2 + i], op.padding[i], op.padding[rank + i]
            )
            for i in range(rank)
        ]
        kept = tuple(slice(first, end) for first, end, _, _ in axes)
        filters = weights[:, :, *kept]
        if filters.shape == weights.shape:
            continue
        padding = (*(before for *_, before, _ in axes), *(after for *_, after in axes))
        name = edit.constant(
            f"{node.name}.weights", np.ascontiguousarray(filters), edit.grids.get(node.inputs[1])
        )
        inputs = (node.inputs[0], name, *node.inputs[2:])
        edit.replace(node, replace(node, op=replace(op, padding=padding), inputs=inputs))
    return edit.done()


@dataclass(frozen=True)
class _Axis:
    """One axis: output i reads input `stride * i + dilation * tap - before`, if there is one."""

    size: int
    outputs: int
    stride: int
    dilation: int

    def cropped(self, taps: int, before: int, after: int) -> tuple[int, int, int, int]:
        """The first tap that is kept, the end of them, and the padding before and after.

        No padding becomes negative: a filter that skips pixels at the edge keeps a tap there.
        """
        first, end = 0, taps
        while end - first > 1 and before >= (first + 1) * self.dilation:
            if self._meets(first * self.dilation - before):
                break
            first += 1
        while end - first > 1 and after >= (taps - end + 1) * self.dilation:
            if self._meets((end - 1) * self.dilation - before):
                break
            end -= 1
        return first, end, before - first * self.dilation, after - (taps - end) * self.dilation

    def _meets(self, start: int) -> bool:
        """Whether a tap meets the image that reads input `start` for the first output."""
        stop = start + self.stride * self.outputs
        return any(0 <= at < self.size for at in range(start, stop, self.stride))
