"""A pass that lets convolutions read shuffled channels from the tensors that computed them.

Shuffles, ranges and concatenations only move channels. A convolution can read its input channels
in any order, if its weights are in the same order. So it can read the ranges of other tensors of
which its shuffled input consists, and no shuffle has to run. A unit of ShuffleNet V2 passes half
of its channels on unchanged; its convolutions then read from several earlier units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastrun.graph.core.model import Array, Graph, Node
from fastrun.graph.core.ops import ChannelShuffle, Concat, Conv, Op, Slice
from fastrun.graph.core.shapes import is_depthwise, is_range
from fastrun.graph.passes.edit import Edit

# A tensor that a node computes, and one of its channels.
Channel = tuple[str, int]


@dataclass(frozen=True)
class _Moved:
    """The origin of each channel of a tensor whose node only moves channels."""

    channels: Sequence[Channel]
    shuffled: bool


def absorb_shuffles(graph: Graph) -> Graph:
    """Let convolutions read channels from before they were shuffled, if nothing else reads them.

    A depthwise convolution writes channels in the order in which it reads them. So the readers of
    its result must accept any order too.
    """
    edit, free = Edit(graph), _free(graph)
    moved: dict[str, _Moved] = {}
    gathered: dict[Sequence[Channel], str] = {}

    def source(name: str) -> _Moved:
        return moved.get(name) or _Moved([(name, i) for i in range(graph.shape(name)[1])], False)

    for node in edit:
        if isinstance(node.op, Conv):
            x = moved.get(node.inputs[0])
            if x and x.shuffled:
                depthwise = is_depthwise(graph, node)
                order = _reading_order(x.channels, 1 if depthwise else node.op.groups)
                name = _gather(edit, node, tuple(x.channels[i] for i in order), gathered)
                if depthwise:
                    places = np.argsort(order).tolist()
                    sorted_ = _add_depthwise(edit, node, name, order)
                    moved[node.output] = _Moved([(sorted_, i) for i in places], True)
                else:
                    _read_in_order(edit, node, name, order)
        elif node.output in free and (found := _composed(graph, node, source)):
            moved[node.output] = found
    return edit.done()


def _composed(graph: Graph, node: Node, source: Callable[[str], _Moved]) -> _Moved | None:
    """The origin of the channels of a node's result; None unless the node only moves channels."""
    if node.output in graph.grids and graph.grids[node.output].exact:
        return None  # it also rounds
    match node.op:
        case ChannelShuffle(groups=groups):
            x = source(node.inputs[0]).channels
            each = len(x) // groups
            return _Moved([x[i * each + j] for j in range(each) for i in range(groups)], True)
        case Slice(starts=starts, sizes=sizes) if is_range(graph, node):
            whole = source(node.inputs[0])
            return replace(whole, channels=whole.channels[starts[1] : starts[1] + sizes[1]])
        case Concat(axis=1) if not any(x in graph.constants for x in node.inputs):
            parts = [source(x) for x in node.inputs]
            channels = [channel for part in parts for channel in part.channels]
            return _Moved(channels, any(part.shuffled for part in parts))
    return None


def _free(graph: Graph) -> set[str]:
    """Tensors whose channels may be stored in any order: all their readers can follow it.

    Readers through slices and concatenations count too.
    """
    free: set[str] = set()
    for node in reversed(graph.nodes):
        x, readers = node.output, graph.readers.get(node.output, ())
        if x not in graph.outputs and all(_follows(graph, r, x, free) for r in readers):
            free.add(x)
    return free


def _follows(graph: Graph, node: Node, x: str, free: set[str]) -> bool:
    """Whether a node can read the channels of `x` wherever they are stored."""
    match node.op:
        case Conv():
            constant = all(name in graph.constants for name in node.inputs[1:3] if name)
            if x in node.inputs[1:] or not constant:
                return False
            return not is_depthwise(graph, node) or (not node.input(3) and node.output in free)
        case ChannelShuffle() | Slice() | Concat():
            known = _Moved([], False)
            return node.output in free and _composed(graph, node, lambda x: known) is not None
    return False


def _reading_order(channels: Sequence[Channel], groups: int) -> list[int]:
    """The order in which the channels of each group are stored, tensor by tensor."""
    tensors = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in channels))}
    each = len(channels) // groups
    place = [(i // each, tensors[name], c) for i, (name, c) in enumerate(channels)]
    return sorted(range(len(channels)), key=place.__getitem__)


def _gather(
    edit: Edit, node: Node, channels: Sequence[Channel], gathered: dict[Sequence[Channel], str]
) -> str:
    """The tensor that consists of these channels; nodes that make it are added before `node`.

    `gathered` has the tensors that exist already.
    """
    if channels in gathered:
        return gathered[channels]
    like = edit.tensor(node.inputs[0])

    def add(name: str, op: Op, inputs: Sequence[str], c: int) -> str:
        output = edit.fresh(name)
        shape = (like.shape[0], c, *like.shape[2:])
        edit.insert(Node(output, op, tuple(inputs), (output,)), replace(like, shape=shape), node)
        return output

    parts = []
    for tensor, first, count in _ranges(channels):
        shape = edit.tensor(tensor).shape
        part = tensor
        if count < shape[1]:
            starts = tuple(first if axis == 1 else 0 for axis in range(len(shape)))
            op = Slice(starts, (shape[0], count, *shape[2:]), (1,) * len(shape))
            part = add(f"{tensor}[{first}:{first + count}]", op, [tensor], count)
        parts.append(part)
    whole = parts[0]
    if len(parts) > 1:
        whole = add(f"{node.inputs[0]}.channels", Concat(1), parts, len(channels))
    gathered[channels] = whole
    return whole


def _ranges(channels: Sequence[Channel]) -> list[tuple[str, int, int]]:
    """(tensor, first channel, number) of each run of consecutive channels."""
    found: list[tuple[str, int, int]] = []
    for name, c in channels:
        tensor, first, count = found[-1] if found else ("", 0, 0)
        if (name, c) == (tensor, first + count):
            found[-1] = tensor, first, count + 1
        else:
            found.append((name, c, 1))
    return found


def _read_in_order(edit: Edit, node: Node, x: str, order: list[int]) -> None:
    """Let a convolution read `x`, which has the channels of its input in `order`."""
    assert isinstance(node.op, Conv)
    weights, grid = edit.constants[node.inputs[1]], edit.grids.get(node.inputs[1])
    if grid and grid.block:
        grid = None  # neighbours do not stay neighbours
    groups, each = node.op.groups, weights.shape[1]
    grouped = weights.reshape(groups, -1, *weights.shape[1:])
    inside = np.array(order).reshape(groups, each) % each
    permuted: Array = np.concatenate([w[:, i] for w, i in zip(grouped, inside, strict=True)])
    name = edit.constant(f"{node.name}.weights", permuted, grid)
    edit.replace(node, replace(node, inputs=(x, name, *node.inputs[2:])))


def _add_depthwise(edit: Edit, node: Node, x: str, order: list[int]) -> str:
    """The result of a depthwise convolution of `x`, with its channels in the same `order`."""
    grid = edit.grids.get(node.inputs[1])
    if grid:
        grid = replace(grid, scale=np.asarray(grid.scale)[order])
    parameters = [
        edit.constant(f"{node.name}.weights", edit.constants[node.inputs[1]][order], grid)
    ]
    if bias := node.input(2):
        parameters.append(edit.constant(f"{node.name}.bias", edit.constants[bias][order]))
    output = edit.fresh(f"{node.output}.channels")
    if node.output in edit.grids:
        edit.grids[output] = edit.grids[node.output]
    computed = replace(node, inputs=(x, *parameters), outputs=(output,))
    edit.insert(computed, edit.tensor(node.output), node)
    return output
