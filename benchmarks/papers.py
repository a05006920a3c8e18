"""Tables of papers beside ours: the same layers, each side as a share of its own machine's peak.

Processors of different years cannot be compared in milliseconds. A share of the peak of plain
multiply-adds can; by Winograd it may exceed 1, since operations count as the direct method's. Of a
paper whose figures for layers are only in its plots, no rates are given: its claim is printed, and
the comparison that the claim is about is measured here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import templates
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.measure.measurer import heuristic_text, remeasure
from fastrun.tuner.records.record import Conditions, Record
from fastrun.tuner.records.units import UNKNOWN, percent, ratio, size
from fastrun.tuner.store.database import existing
from fastrun.tuner.store.staleness import first_current
from fastrun.tuner.terminal.display import grid, screen

IM2COL = "im2col of the whole image, packed separately"
"""The textbook's way, which papers compare with."""


@dataclass(frozen=True)
class Paper:
    """Published rates of layers, in GFLOP/s by the direct method's operations.

    A rate of 0 is unknown. `peak` is that of the threads used there, in GFLOP/s; `about` says with
    what the rates were reached. `claim` is what the paper says of all layers. `by` are our
    algorithms that compute as the paper's does, the best one first; if there are none, the best
    known schedule is taken. `against` is the way that the claim compares with. `chosen` says where
    the layers come from, if not from a table that was at hand.
    """

    title: str
    source: str
    about: str
    layers: Mapping[str, float]
    peak: float = 0.0
    claim: str = ""
    by: tuple[str, ...] = ()
    against: str = ""
    chosen: str = ""


def _unknown(*texts: str) -> dict[str, float]:
    return dict.fromkeys((f"conv {text}" for text in texts), 0.0)


_RECALLED = "those of MEC's table as they are usually quoted, not compared with the table itself"

# The layers that MEC's authors chose, from AlexNet, OverFeat, VGG and ResNet.
_TWELVE = _unknown(
    "1x3x227x227 96x11x11 s4 p0",
    "1x3x231x231 96x11x11 s4 p0",
    "1x3x227x227 64x7x7 s2 p0",
    "1x64x224x224 64x7x7 s2 p0",
    "1x96x24x24 256x5x5 s1 p0",
    "1x256x12x12 512x3x3 s1 p0",
    "1x3x224x224 64x3x3 s1 p0",
    "1x64x112x112 128x3x3 s1 p0",
    "1x64x56x56 64x3x3 s1 p0",
    "1x128x28x28 128x3x3 s1 p0",
    "1x256x14x14 256x3x3 s1 p0",
    "1x512x7x7 512x3x3 s1 p0",
)

PAPERS: Mapping[str, Paper] = {
    "tvm-winograd": Paper(
        title="Winograd in NCHWc layouts, TVM pull request 2111 (2018)",
        source="https://github.com/apache/tvm/pull/2111",
        about="one thread, 1000 trials of AutoTVM for each layer",
        peak=120.0,
        layers={
            "conv 1x64x56x56 64x3x3 s1 p1": 193.0,
            "conv 1x128x28x28 128x3x3 s1 p1": 221.0,
            "conv 1x256x14x14 256x3x3 s1 p1": 182.0,
            "conv 1x512x7x7 512x3x3 s1 p1": 176.0,
        },
    ),
    "georganas": Paper(
        title="Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures (2018)",
        source="https://arxiv.org/abs/1808.05567",
        about="direct convolution by code made at run time, whole Xeon and Xeon Phi chips, batches",
        claim="close to theoretical peak, depending on setting and processor",
        layers=_unknown(
            "1x3x224x224 64x7x7 s2 p3",
            "1x64x56x56 256x1x1 s1 p0",
            "1x64x56x56 64x1x1 s1 p0",
            "1x64x56x56 64x3x3 s1 p1",
            "1x256x56x56 64x1x1 s1 p0",
            "1x256x56x56 512x1x1 s2 p0",
            "1x256x56x56 128x1x1 s2 p0",
            "1x128x28x28 128x3x3 s1 p1",
            "1x128x28x28 512x1x1 s1 p0",
            "1x512x28x28 128x1x1 s1 p0",
            "1x512x28x28 1024x1x1 s2 p0",
            "1x512x28x28 256x1x1 s2 p0",
            "1x256x14x14 256x3x3 s1 p1",
            "1x256x14x14 1024x1x1 s1 p0",
            "1x1024x14x14 256x1x1 s1 p0",
            "1x1024x14x14 2048x1x1 s2 p0",
            "1x1024x14x14 512x1x1 s2 p0",
            "1x512x7x7 512x3x3 s1 p1",
            "1x512x7x7 2048x1x1 s1 p0",
            "1x2048x7x7 512x1x1 s1 p0",
        ),
        by=("pointwise", "direct"),
        chosen="all distinct ones of ResNet-50, not compared with the paper's table",
    ),
    "zhang": Paper(
        title="High Performance Zero-Memory Overhead Direct Convolutions (2018)",
        source="https://arxiv.org/abs/1809.10170",
        about="direct convolution in blocked layouts; AlexNet, GoogLeNet, VGG",
        claim="10 % to 400 % better than implementations that use more memory",
        layers=_unknown(
            "1x3x227x227 96x11x11 s4 p0",
            "1x96x27x27 256x5x5 s1 p2",
            "1x256x13x13 384x3x3 s1 p1",
            "1x64x56x56 192x3x3 s1 p1",
            "1x128x28x28 192x3x3 s1 p1",
            "1x16x28x28 32x5x5 s1 p2",
            "1x96x14x14 208x3x3 s1 p1",
            "1x64x112x112 128x3x3 s1 p1",
            "1x128x56x56 256x3x3 s1 p1",
            "1x512x14x14 512x3x3 s1 p1",
        ),
        by=("direct",),
        against=IM2COL,
        chosen="ten of these networks, chosen by us; the paper measures all layers",
    ),
    "im2win": Paper(
        title="Im2win: Memory Efficient Convolution On SIMD Architectures (2022)",
        source="https://arxiv.org/abs/2306.14320",
        about="windows of a row unfolded once; MEC's twelve layers",
        claim=(
            "3.6x over PyTorch's im2col on average, in 41.6 % of its memory; a later paper, "
            "https://arxiv.org/abs/2408.00278, up to 95 % of peak"
        ),
        layers=_TWELVE,
        by=("direct",),
        against=IM2COL,
        chosen=_RECALLED,
    ),
    "mec": Paper(
        title="MEC: Memory-Efficient Convolution for Deep Neural Network (2017)",
        source="https://arxiv.org/abs/1706.06873",
        about="lowered along rows only; its twelve layers, by our kernels for its method",
        claim="less memory than im2col, with good speed-up",
        layers=_TWELVE,
        by=("mec",),
        against=IM2COL,
        chosen=_RECALLED,
    ),
}
"""The papers by the names of `fastrun bench --paper`."""

NETWORKS = "neocpu"
"""The paper about whole networks, see `paper_networks`."""


@dataclass(frozen=True)
class Row:
    """A layer: the paper's rate and ours, each as a share of the peak there and here.

    `theirs` is None where the paper has no rate. `other` is the way that the claim compares with.
    """

    problem: str
    theirs: float | None
    ours: float
    record: Record
    other: Record | None = None

    @property
    def ratio(self) -> float:
        """Our share as a multiple of theirs; without theirs it is our share itself."""
        return self.ours / (self.theirs or 1.0)

    @property
    def faster(self) -> float:
        """How many times as fast as the other way; 1 without it."""
        return self.other.seconds_per_call / self.record.seconds_per_call if self.other else 1.0


def rows(paper: Paper, url: str | None) -> list[Row]:
    """The layers of a paper, measured here on one thread: stored winners, else the heuristic's.

    Raises:
        DatabaseError: the database cannot be read.
        RuntimeError: a schedule does not compute what it should.
    """
    peak, found = probe().peak, list[Row]()
    with existing(url) as database:
        for text, gflops in paper.layers.items():
            p = ConvProblem.parse(text)
            best = first_current(database.ranking(p, Conditions.here())) if not paper.by else None
            record = _measured(p, best.schedule if best else _schedule(p, paper.by))
            other = _measured(p, _textbook(p)) if paper.against else None
            theirs = gflops / paper.peak if gflops else None
            found.append(Row(text, theirs, p.flops / record.seconds_per_call / peak, record, other))
    return found


def _schedule(p: ConvProblem, by: Sequence[str]) -> str:
    """The heuristic's schedule, by the first of some algorithms that applies."""
    for name in by:
        template = templates()[name]
        if template.refusal(p, Cpu.host()) is None:
            return template.text(template.heuristic(p, Cpu.host()))
    return heuristic_text(p)


def _textbook(p: ConvProblem) -> str:
    """The schedule of im2col that unfolds the whole image, and packs it afterwards."""
    template = templates()["im2col"]
    formula = template.heuristic(p, Cpu.host())
    return template.text(replace(formula, block=p.oh * p.ow, kc=p.group_c, fused=False))


def _measured(p: ConvProblem, schedule: str) -> Record:
    record = remeasure(p, schedule, 1, "hot")
    if not record.samples:
        raise RuntimeError(f"{schedule} on {p}: {record.outcome}: {record.reason}")
    return record


def show(paper: Paper, found: Sequence[Row]) -> None:
    """Print the paper's table beside ours."""
    print(f"{paper.title}: {paper.about}\n{paper.source}")
    if paper.claim:
        print(f"the paper says: {paper.claim}")
    if paper.chosen:
        print(f"the layers: {paper.chosen}")
    rated = any(row.theirs for row in found)
    heads = ["layer"]
    heads += ["theirs\nGFLOP/s>", "of their\npeak>"] if rated else []
    heads += ["ours\nGFLOP/s>", "of our\npeak>"]
    heads += ["ours /\ntheirs>"] if rated else []
    if paper.against:
        heads += [
            "im2col's,\nof our peak>",
            "over\nim2col>",
            "memory\nbeside>",
            "im2col's\nmemory>",
        ]
    grid(screen(), [*heads, "schedule"], [_cells(paper, row, rated) for row in found])
    peak = f"our peak {probe().peak / 1e9:.0f} GFLOP/s, one thread"
    mean = statistics.geometric_mean(row.ratio for row in found)
    said = f"geometric mean of the shares: {ratio(mean)}" if rated else f"of peak: {percent(mean)}"
    if paper.against:
        faster = [row.faster for row in found]
        said += f"; over {paper.against}: {ratio(statistics.geometric_mean(faster))}, "
        said += f"{ratio(min(faster))} to {ratio(max(faster))}"
    print(f"{said}; {peak}")


def _cells(paper: Paper, row: Row, rated: bool) -> list[str]:
    flops = ConvProblem.parse(row.problem).flops
    cells = [row.problem]
    if rated:
        given = paper.layers[row.problem]
        cells += [f"{given:.0f}" if given else UNKNOWN]
        cells += [percent(row.theirs) if row.theirs else UNKNOWN]
    cells += [f"{flops / row.record.seconds_per_call / 1e9:.0f}", percent(row.ours)]
    cells += [ratio(row.ratio)] if rated else []
    if row.other:
        cells += [percent(row.ours / row.faster), ratio(row.faster)]
        cells += [size(row.record.workspace), size(row.other.workspace)]
    return [*cells, row.record.algorithm]
