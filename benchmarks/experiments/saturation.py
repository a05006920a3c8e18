"""What a quantised network loses where `vpmaddubsw` saturates, simulated exactly.

    python -m fastrun.benchmarks.experiments.saturation [--quick] [--csv FOLDER]

On x86 without VNNI the fastest product of u8 activations and s8 weights adds two neighbouring
products in 16 bits and stays at -32768 or 32767 where the sum would be larger. The loss depends on
the data and appears on no processor with VNNI. Here onnx's reference evaluator runs a quantised
file; only its convolutions and its products with constant weights are computed as that instruction
does. Depthwise convolutions are exact: they have no pairs of channels.
"""

from __future__ import annotations

import itertools
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fastrun.benchmarks import accuracy
from fastrun.benchmarks.accuracy.score import Score, scores
from fastrun.benchmarks.experiments.command import Column, show, write_csv
from fastrun.benchmarks.peers import Array
from fastrun.benchmarks.peers.low.original import Original
from fastrun.benchmarks.precision_table import SCORE_HEADS, score_texts
from fastrun.tuner.records.units import significant
from fastrun.tuner.terminal.display import grid, screen
from fastrun.tuner.terminal.exits import ended, leave

SAMPLES = 100

_LOW, _HIGH = -(2**15), 2**15 - 1
_LARGEST = 255  # the largest activation
_DOMAIN = "fastrun.benchmarks"
_OPSET = 21  # the evaluator has no QuantizeLinear before 19

Integers = NDArray[np.float64]
"""Whole numbers in float64, whose products numpy sums quickly and, below 2**53, exactly."""


def saturating(w: Integers) -> NDArray[np.bool_]:
    """Whether pairs of neighbouring weights (oc, pairs) can leave 16 bits for some activations."""
    pairs = w.reshape(len(w), -1, 2)
    ends = pairs.clip(min=0).sum(-1) * _LARGEST > _HIGH, pairs.clip(max=0).sum(-1) * _LARGEST < _LOW
    found: NDArray[np.bool_] = ends[0] | ends[1]
    return found


def products(x: Integers, w: Integers) -> tuple[Integers, Integers]:
    """The sums over k of x (pixels, k) and w (oc, k): exact, and as `vpmaddubsw` adds them.

    An odd last k pairs with zero, as in padded weights.
    """
    if x.shape[1] % 2:
        x, w = (np.pad(a, ((0, 0), (0, 1))) for a in (x, w))
    exact = x @ w.T
    found = exact.copy()
    for oc, pair in zip(*saturating(w).nonzero(), strict=True):
        k = slice(2 * pair, 2 * pair + 2)
        sums = x[:, k] @ w[oc, k]
        found[:, oc] += sums.clip(_LOW, _HIGH) - sums
    return exact, found


class _Product(OpRun):  # type: ignore[misc]
    """A convolution (`conv` = 1) or a product with a constant matrix, of integers.

    Inputs: x, its scale and zero point, the weights, their scales, and the bias if there is one.
    """

    op_domain = _DOMAIN

    def _run(
        self, x: Any, scale: Any, zero: Any, w: Any, scales: Any, bias: Any = None, **_: Any
    ) -> tuple[Array]:
        watch: Watch = WATCHES[self.watch]
        if self.conv:
            pixels, weights = _unfolded(x, zero, w, self.pads, self.strides, self.dilations)
        else:
            pixels, weights = x, w.T
        flat = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64) - 0.0
        integers = weights.reshape(len(weights), -1).astype(np.float64)
        exact, found = products(flat, integers)
        watch.see(self.label, exact, found, integers)
        # The zero point leaves the sums afterwards, as in every engine.
        chosen = found if watch.saturate else exact
        sums = chosen - float(zero) * integers.sum(1)
        y = (sums * (np.float64(scale) * scales)).astype(np.float32)
        if bias is not None:
            y += bias
        y = y.reshape(*pixels.shape[:-1], len(weights))
        return (np.moveaxis(y, -1, 1) if self.conv else y,)


class Watch:
    """What the products of a network have met, by the name of the node.

    Columns of `table`: `layer`, the share of weight `pairs` that can saturate, the share of
    `outputs` that did, and the `error` (rms, relative to the rms of the exact sums).
    """

    def __init__(self, saturate: bool) -> None:
        self.saturate = saturate
        self._seen: dict[str, NDArray[np.float64]] = {}
        self._pairs: dict[str, float] = {}

    def see(self, label: str, exact: Integers, found: Integers, w: Integers) -> None:
        """Count a product's outputs."""
        wrong = found - exact
        sums = (wrong != 0).sum(), exact.size, (wrong**2).sum(), (exact**2).sum()
        self._seen[label] = self._seen.get(label, np.zeros(4)) + np.array(sums)
        if label not in self._pairs:
            even = w if w.shape[1] % 2 == 0 else np.pad(w, ((0, 0), (0, 1)))
            self._pairs[label] = float(saturating(even).mean())

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "layer": label,
                "pairs": self._pairs[label],
                "outputs": changed / count,
                "error": (noise / signal) ** 0.5 if signal else 0.0,
            }
            for label, (changed, count, noise, signal) in self._seen.items()
        )


WATCHES: list[Watch] = []
"""The watches of all sessions: a node of an ONNX model can only name its own by a number."""


class Simulation:
    """A session of a QDQ file of onnxruntime's quantiser, whose products may saturate."""

    def __init__(self, model: onnx.ModelProto, saturate: bool) -> None:
        self.watch = Watch(saturate)
        WATCHES.append(self.watch)
        newer = onnx.version_converter.convert_version(model, _OPSET)
        replaced = _with_products(newer, len(WATCHES) - 1)
        self._evaluator = ReferenceEvaluator(replaced, new_ops=[_Product])

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        found: list[Array] = self._evaluator.run(None, dict(inputs))
        return found

    def call(self) -> None:
        raise NotImplementedError("a simulation is not timed")


def _with_products(model: onnx.ModelProto, watch: int) -> onnx.ModelProto:
    """The model with `_Product` in place of a product of dequantised tensors."""
    made = {y: node for node in model.graph.node for y in node.output}
    fixed = {w.name: w for w in model.graph.initializer}
    found = onnx.ModelProto()
    found.CopyFrom(model)
    found.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    for node in found.graph.node:
        before = [made.get(x) for x in node.input[:2]]
        if node.op_type not in ("Conv", "MatMul") or not all(
            n and n.op_type == "DequantizeLinear" for n in before
        ):
            continue
        x, w = (n for n in before if n)
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if w.input[0] not in fixed or given.get("group", 1) != 1:
            continue
        conv = node.op_type == "Conv"
        bias = list(node.input[2:3])
        geometry = {k: list(given.get(k, v)) for k, v in _DEFAULTS.items()} if conv else {}
        new = onnx.helper.make_node(
            _Product.__name__, [*x.input, *w.input[:2], *bias], node.output, node.name,
            domain=_DOMAIN, conv=int(conv), watch=watch, label=node.name, **geometry,
        )  # fmt: skip
        node.CopyFrom(new)
    return found


_DEFAULTS: Mapping[str, Sequence[int]] = {
    "pads": (0, 0, 0, 0),
    "strides": (1, 1),
    "dilations": (1, 1),
}


def _unfolded(
    x: Any, zero: Any, w: Any, pads: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Any, Any]:
    """The operands of a convolution's product: pixels (1, h, w, k), weights (oc, k).

    The order of k is that of kernels on NHWC: channels are innermost.
    """
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero)
    size = [(n - 1) * d + 1 for n, d in zip(w.shape[2:], dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))
    taken = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    pixels = taken.transpose(0, 2, 3, 4, 5, 1)
    return pixels.reshape(*pixels.shape[:3], -1), w.transpose(0, 2, 3, 1).reshape(len(w), -1)


def measure(name: str, samples: int, place: Path) -> tuple[dict[str, Score], pd.DataFrame]:
    """The scores of a task's int8 file with and without saturation, and the table of its layers.

    Keys are `exact`, `saturating` and `7-bit weights`, which cannot saturate.
    """
    from fastrun.benchmarks import ours

    task = accuracy.task(name)
    original = Original(task.model, task.calibration, place)
    model = original.quantised()
    sessions = {
        "exact": Simulation(model, saturate=False),
        "saturating": Simulation(model, saturate=True),
        "7-bit weights": Simulation(original.quantised(7), saturate=True),
    }
    chosen = itertools.islice(task.samples(), samples)
    float32 = ours.NetworkSession(original.model, 1, None)
    counted = scores(chosen, float32, sessions)
    return counted, sessions["exact"].watch.table


def show_scores(counted: Mapping[str, Score]) -> None:
    """Print the scores."""
    rows = [[name, *score_texts(score)] for name, score in counted.items()]
    grid(screen(), ["products", *SCORE_HEADS], rows)


_LAYERS: dict[str, Column] = {
    "layer": lambda r: r.layer,
    "pairs that\ncan saturate>": lambda r: f"{100 * r.pairs:.2f} %",
    "outputs that\ndid>": lambda r: f"{100 * r.outputs:.2f} %",
    "error, of the\noutputs' rms>": lambda r: significant(r.error, 2),
}


def show_layers(layers: pd.DataFrame) -> None:
    """Print rows of the table of a network's layers."""
    show(_LAYERS)(layers)


def main(words: Sequence[str] | None = None) -> int:
    """Simulate the tasks, print and write the tables."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.experiments.saturation",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument("--quick", action="store_true", help="one task, few samples")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write the tables to files here")
    arguments = parser.parse_args(words)
    samples = 5 if arguments.quick else SAMPLES
    for name in ("digits",) if arguments.quick else accuracy.NAMES:
        if reason := accuracy.missing(name):
            print(f"{name} is left out: {reason}")
            continue
        counted, layers = measure(name, samples, Path("build/precision"))
        print(f"\n{name}")
        show_scores(counted)
        show_layers(layers[layers["outputs"] > 0])
        write_csv(arguments.csv, f"saturation-{name}", layers)
    return 0


if __name__ == "__main__":
    leave(ended("saturation", main))
