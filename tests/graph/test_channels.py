"""Absorbing channel shuffles: on random networks nothing changes but where channels are read."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fastrun.graph.core.model import Array, Graph, Node, Tensor
from fastrun.graph.core.ops import ChannelShuffle, Concat, Conv, Op, Pool, Slice, Unary
from fastrun.graph.passes.absorb_shuffles import absorb_shuffles
from fastrun.graph.plan.choices import Choice, Choose, heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference.interpreter import run
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.conv import direct
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout
from fastrun.kernels.core.problem import ConvProblem
from tests.support.execution import relative_error
from tests.support.graph_models import normal

CPU = Cpu.host()
L = CPU.lanes
H, W = 5, 6


class Network:
    """A graph under construction, of tensors of one height and width."""

    def __init__(self, c: int) -> None:
        self.nodes: list[Node] = []
        self.tensors = {"x": self._tensor(c)}
        self.constants: dict[str, Array] = {}

    def channels(self, x: str) -> int:
        return self.tensors[x].shape[1]

    def add(self, op: Op, c: int, *inputs: str) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs, (name,)))
        self.tensors[name] = self._tensor(c)
        return name

    def conv(self, x: str, oc: int, kernel: int = 1, groups: int = 1, add: str = "") -> str:
        shape = (oc, self.channels(x) // groups, kernel, kernel)
        scale = np.float32(np.prod(shape[1:]) ** -0.5)
        seed = len(self.constants)
        names = f"w{seed}", f"b{seed}"
        self.constants |= {names[0]: normal(*shape, seed=seed) * scale, names[1]: normal(oc)}
        op = Conv((1, 1), (kernel // 2,) * 4, (1, 1), groups, "relu" if seed % 4 else "")
        return self.add(op, oc, x, *names, add)

    def depthwise(self, x: str) -> str:
        return self.conv(x, self.channels(x), 3, self.channels(x))

    def shuffle(self, x: str, groups: int) -> str:
        return self.add(ChannelShuffle(groups), self.channels(x), x)

    def slice(self, x: str, first: int, count: int) -> str:
        return self.add(Slice((0, first, 0, 0), (1, count, H, W), (1,) * 4), count, x)

    def concat(self, *parts: str) -> str:
        return self.add(Concat(1), sum(map(self.channels, parts)), *parts)

    def graph(self, *outputs: str) -> Graph:
        return Graph("g", tuple(self.nodes), ("x",), outputs, self.tensors, self.constants)

    @staticmethod
    def _tensor(c: int) -> Tensor:
        return Tensor((1, c, H, W), np.dtype(np.float32))


def units(count: int, half: int, groups: int = 2) -> Graph:
    """As in ShuffleNet V2: of two halves one passes by; the last result goes two ways."""
    net = Network(4)
    x = net.shuffle(net.concat(net.conv("x", half), net.conv("x", half)), groups)
    for _ in range(count):
        left, right = net.slice(x, 0, half), net.slice(x, half, half)
        right = net.conv(net.depthwise(net.conv(right, half)), half)
        x = net.shuffle(net.concat(left, right), groups)
    return net.graph(net.conv(net.depthwise(x), 5), net.conv(x, 6))


def grouped(groups: int, each: int) -> Graph:
    """As in ShuffleNet V1: a shuffle between grouped convolutions, and one depthwise."""
    net = Network(groups * each)
    x = net.shuffle(net.conv("x", groups * each, groups=groups), groups)
    x = net.conv(net.depthwise(x), groups * each, groups=groups, add="x")
    return net.graph(net.conv(x, 2 * groups, groups=groups))


def step(net: Network, draw: random.Random, x: str, other: str) -> str:
    """Something done to `x`; shuffles and other moves of channels more often than the rest."""
    c = net.channels(x)
    groups = draw.choice([g for g in range(1, c + 1) if c % g == 0])
    first = draw.randrange(c)
    kinds = "conv wide grouped shuffle slice concat relu pool"
    match draw.choices(kinds.split(), [4, 3, 2, 8, 4, 4, 1, 1])[0]:
        case "conv":
            return net.conv(x, draw.choice([4, 9, 12]))
        case "wide":
            return net.conv(x, c, 3, draw.choice([1, c]))
        case "grouped":
            return net.conv(x, c, groups=groups, add=x)
        case "shuffle":
            return net.shuffle(x, groups)
        case "slice":
            return net.slice(x, first, draw.randint(1, c - first))
        case "concat":
            return net.concat(x, other)
        case "relu":
            return net.add(Unary("relu"), c, x)
    return net.add(Pool("max", (3, 3), (1, 1), (1,) * 4, (1, 1)), c, x)


def anything(seed: int) -> Graph:
    """Convolutions, moves of channels, and some readers that need an order."""
    draw = random.Random(seed)
    net = Network(6)
    there = ["x", net.conv("x", 12), net.conv("x", 8)]
    for _ in range(18):
        there.append(step(net, draw, draw.choice(there[-4:]), draw.choice(there)))
    read = {x for node in net.nodes for x in node.inputs}
    return net.graph(*(net.conv(x, 3) for x in there if x not in read))


GRAPHS = {
    **{f"units of {half}": units(4, half) for half in (L - 3, L + 1, 2 * L)},
    "one unit": units(1, 6),
    "units shuffled by three": units(3, 9, groups=3),
    **{f"{groups} groups of {each}": grouped(groups, each) for groups, each in [(3, 20), (4, 6)]},
}


def operators(graph: Graph) -> list[type]:
    return [type(node.op) for node in graph.nodes]


def check(graph: Graph, natively: bool, choose: Choose | None = None) -> Graph:
    absorbed = absorb_shuffles(graph)
    x = {"x": normal(*graph.shape("x"))}
    truth, same = run(graph, x), run(absorbed, x)
    for name, value in truth.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-9, atol=1e-9)
    if natively:
        plan, arrangement = make_plan(absorbed, choose or heuristic_choices(CPU), CPU)
        executable = Executable.of(arrangement, CPU, 2, plan)
        for _ in range(2):
            for name, value in executable.run(x).items():
                assert relative_error(value, truth[name]) < 1e-4
    return absorbed


@pytest.mark.parametrize("name", GRAPHS)
def test_shuffles_vanish(name: str) -> None:
    absorbed = check(GRAPHS[name], natively=True)
    assert ChannelShuffle not in operators(absorbed)


@pytest.mark.parametrize("seed", range(60))
def test_random_networks_compute_the_same(seed: int) -> None:
    check(anything(seed), natively=seed < 12)


def test_most_random_networks_contain_shuffles_that_vanish_and_some_that_stay() -> None:
    counts = [
        [operators(graph).count(ChannelShuffle) for graph in (g, absorb_shuffles(g))]
        for g in map(anything, range(60))
    ]
    assert sum(after < before for before, after in counts) > 20
    assert sum(after > 0 for _, after in counts) > 5


def test_a_unit_reads_one_range_of_every_unit_before() -> None:
    absorbed = absorb_shuffles(units(4, 16))
    joined = [node for node in absorbed.nodes if node.op == Concat(1)]
    sizes = [[absorbed.shape(x)[1] for x in node.inputs] for node in joined]
    assert [sorted(s) for s in sizes] == [[8, 8], [4, 4, 8], [2, 2, 4, 8], [1, 1, 2, 4, 8],
        [1, 1, 2, 4, 8, 16]]  # fmt: skip


def test_who_needs_the_order_keeps_it() -> None:
    def networks(reader: Callable[[Network, str], str]) -> Graph:
        net = Network(6)
        x = net.shuffle(net.conv("x", 6), 2)
        return net.graph(net.conv(x, 3), reader(net, x))

    for reader in (
        lambda net, x: x,
        lambda net, x: net.add(Unary("relu"), 6, x),
        lambda net, x: net.conv("x", 6, add=x),
        lambda net, x: net.depthwise(x),
        lambda net, x: net.slice(x, 1, 2),
    ):
        assert ChannelShuffle in operators(check(networks(reader), natively=False))


def test_a_network_without_shuffles_stays_as_it_is() -> None:
    net = Network(6)
    a, b = net.conv("x", 6), net.conv("x", 4)
    graph = net.graph(net.conv(net.concat(net.slice(a, 2, 3), b), 5))
    assert absorb_shuffles(graph) == graph


def test_parts_are_put_together_for_kernels_that_read_blocks() -> None:
    """In NHWC if the parts are not whole blocks; one move then brings the whole into blocks."""

    def in_blocks(p: ConvProblem) -> list[Choice]:
        layout = Layout("NHWC" if p.groups > 1 else "NCHW8c")
        schedule = replace(direct.template.heuristic(p, CPU), layout=str(layout))
        return [Choice(direct.template.text(schedule), layout, layout, 1e-6)]

    graph = check(units(3, 9), natively=True, choose=in_blocks)
    _, arrangement = make_plan(graph, in_blocks, CPU)
    moved = {(step.output, step.layouts) for step in arrangement.steps if step.work == "reorder"}
    joined = [node.output for node in graph.nodes if node.op == Concat(1)]
    assert {(name, "NHWC>NCHW8c") for name in joined} <= moved
    assert not any(step.gathered for step in arrangement.steps)


def test_nothing_is_copied_where_convolutions_read_ranges() -> None:
    """Except for the input of a depthwise convolution, whose vectors are channels."""
    graph = absorb_shuffles(units(4, 24))
    _, arrangement = make_plan(graph, heuristic_choices(CPU), CPU)
    copies = [step for step in arrangement.steps if step.work in ("reorder", "ChannelShuffle")]
    ends = ("x", *graph.outputs)
    last = max(i for i, node in enumerate(graph.nodes) if node.op == Concat(1))
    assert {step.output for step in copies} <= {*ends, *graph.nodes[last].inputs}
