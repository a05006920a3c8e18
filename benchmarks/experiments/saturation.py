"""What a quantised network loses where `vpmaddubsw` saturates, simulated exactly.

    python -m fastrun.benchmarks.experiments.saturation [--quick] [--csv FOLDER]

On x86 without VNNI the fastest product of u8 activations and s8 weights adds two neighbouring
products in 16 bits and stays at -32768 or 32767 where the sum would be larger. The loss depends on
the data and appears on no processor with VNNI. Here the convolutions of a quantised file and its
products with constant weights are computed as that instruction does, the rest by onnxruntime.
Depthwise convolutions are exact: they have no pairs of channels.
"""

from __future__ import annotations

import itertools
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from numpy.typing import NDArray

from fastrun.benchmarks import accuracy
from fastrun.benchmarks.accuracy.score import Score, scores
from fastrun.benchmarks.experiments.command import Column, show, write_csv
from fastrun.benchmarks.peers import Array, ort
from fastrun.benchmarks.peers.low import ort as ort_low
from fastrun.benchmarks.peers.low.original import Original
from fastrun.benchmarks.precision import Loader
from fastrun.benchmarks.precision_table import SCORE_HEADS, score_texts
from fastrun.tuner.records.units import significant
from fastrun.tuner.terminal.display import grid, screen
from fastrun.tuner.terminal.exits import ended, leave

SAMPLES = 100

_LOW, _HIGH = -(2**15), 2**15 - 1
_LARGEST = 255  # the largest activation

Integers = NDArray[np.float64]
"""Whole numbers in float64, whose products numpy sums quickly and, below 2**53, exactly."""


def saturating(w: Integers) -> NDArray[np.bool_]:
    """Whether pairs of neighbouring weights (oc, pairs) can leave 16 bits for some activations."""
    pairs = _even(w).reshape(len(w), -1, 2)
    ends = pairs.clip(min=0).sum(-1) * _LARGEST > _HIGH, pairs.clip(max=0).sum(-1) * _LARGEST < _LOW
    found: NDArray[np.bool_] = ends[0] | ends[1]
    return found


def products(x: Integers, w: Integers) -> tuple[Integers, Integers]:
    """The sums over k of x (pixels, k) and w (oc, k): exact, and as `vpmaddubsw` adds them.

    An odd last k pairs with zero, as in padded weights.
    """
    x, w = _even(x), _even(w)
    exact = x @ w.T
    found = exact.copy()
    for oc, pair in zip(*saturating(w).nonzero(), strict=True):
        k = slice(2 * pair, 2 * pair + 2)
        sums = x[:, k] @ w[oc, k]
        found[:, oc] += sums.clip(_LOW, _HIGH) - sums
    return exact, found


def _even(a: Integers) -> Integers:
    """Rows of even length, filled up with a zero."""
    return np.pad(a, ((0, 0), (0, a.shape[1] % 2)))


class Simulation:
    """A session of a QDQ file of onnxruntime's quantiser, whose products may saturate.

    onnxruntime computes what lies between the products.
    """

    def __init__(self, model: onnx.ModelProto, saturate: bool) -> None:
        self._seen: dict[str, NDArray[np.float64]] = {}
        self._pairs: dict[str, float] = {}
        self._saturate = saturate
        self._outputs = [v.name for v in model.graph.output]
        self._steps = list(_steps(model))

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        values: dict[str, Any] = dict(inputs)
        for step in self._steps:
            if isinstance(step, _Part):
                found = step.session.run({name: values[name] for name in step.reads})
                values.update(zip(step.writes, found, strict=True))
            else:
                values[step.writes] = self._product(step, values[step.reads])
        return [values[name] for name in self._outputs]

    def call(self) -> None:
        raise NotImplementedError("a simulation is not timed")

    @property
    def table(self) -> pd.DataFrame:
        """What the products have met so far, a row for each.

        Columns `layer`, the share of weight `pairs` that can saturate, the share of `outputs` that
        did, and the `error` (rms, relative to the rms of the exact sums).
        """
        return pd.DataFrame(
            {
                "layer": label,
                "pairs": self._pairs[label],
                "outputs": changed / count,
                "error": (noise / signal) ** 0.5 if signal else 0.0,
            }
            for label, (changed, count, noise, signal) in self._seen.items()
        )

    def _product(self, step: _Product, x: Any) -> Array:
        pixels = step.unfolded(x)
        flat = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64)
        exact, found = products(flat, step.w)
        wrong = found - exact
        sums = (wrong != 0).sum(), exact.size, (wrong**2).sum(), (exact**2).sum()
        self._seen[step.label] = self._seen.get(step.label, np.zeros(4)) + np.array(sums)
        if step.label not in self._pairs:
            self._pairs[step.label] = float(saturating(step.w).mean())
        # The zero point leaves the sums afterwards, as in every engine.
        chosen = (found if self._saturate else exact) - step.zero * step.w.sum(1)
        y = (chosen * step.scales + step.bias).astype(np.float32)
        y = y.reshape(*pixels.shape[:-1], len(step.w))
        return np.moveaxis(y, -1, 1) if step.geometry else y


@dataclass(frozen=True)
class _Part:
    """Nodes between products, as a session of onnxruntime."""

    session: ort.Session
    reads: Sequence[str]
    writes: Sequence[str]


@dataclass(frozen=True)
class _Product:
    """A convolution, or a product with a constant matrix, of integers: y = sum * scales + bias.

    `w` are the weights (oc, k). In a convolution channels are innermost in k, as in kernels on
    NHWC; `geometry` is empty for a matrix.
    """

    label: str
    reads: str
    writes: str
    zero: float
    w: Integers
    scales: NDArray[np.float64]
    bias: NDArray[np.float64]
    size: Sequence[int] = ()
    geometry: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def unfolded(self, x: Any) -> Any:
        """Pixels (..., k) of an input."""
        if not self.geometry:
            return x
        top, left, bottom, right = self.geometry["pads"]
        strides, dilations = self.geometry["strides"], self.geometry["dilations"]
        around = (0, 0), (0, 0), (top, bottom), (left, right)
        padded = np.pad(x, around, constant_values=int(self.zero))
        size = [(n - 1) * d + 1 for n, d in zip(self.size, dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))
        taken = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
        pixels = taken.transpose(0, 2, 3, 4, 5, 1)
        return pixels.reshape(*pixels.shape[:3], -1)


def _steps(model: onnx.ModelProto) -> Iterator[_Part | _Product]:
    """The products of dequantised tensors, and what lies between."""
    arrays = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    made = {y: node for node in model.graph.node for y in node.output}
    waiting: list[onnx.NodeProto] = []
    found: list[list[onnx.NodeProto] | _Product] = []
    for node in model.graph.node:
        product = _product(node, made, arrays)
        if product is None:
            waiting.append(node)
            continue
        if waiting:
            found.append(waiting)
        found.append(product)
        waiting = []
    if waiting:
        found.append(waiting)
    whole = onnx.shape_inference.infer_shapes(model)
    for i, step in enumerate(found):
        yield step if isinstance(step, _Product) else _part(whole, step, found[i + 1 :])


def _product(
    node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto], arrays: Mapping[str, NDArray[Any]]
) -> _Product | None:
    """The node as a product; None if it is none, or one without pairs of channels."""
    before = [made.get(x) for x in node.input]
    if node.op_type not in ("Conv", "MatMul") or not all(
        n and n.op_type == "DequantizeLinear" for n in before
    ):
        return None
    x, w, *biases = (n for n in before if n)
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if w.input[0] not in arrays or given.get("group", 1) != 1:
        return None
    weights = arrays[w.input[0]].astype(np.float64)
    scales = np.float64(arrays[x.input[1]]) * arrays[w.input[1]]
    # Biases have the scale of the sums.
    bias = arrays[biases[0].input[0]] * scales if biases else np.zeros_like(scales)
    zero = float(arrays[x.input[2]])
    names = node.name, x.input[0], node.output[0]
    if node.op_type == "MatMul":
        return _Product(*names, zero, weights.T, scales, bias)
    size = weights.shape[2:]
    flat = weights.transpose(0, 2, 3, 1).reshape(len(weights), -1)
    return _Product(*names, zero, flat, scales, bias, size, _geometry(given, size))


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    later: Sequence[Sequence[onnx.NodeProto] | _Product],
) -> _Part:
    """Some nodes of a model as a session. It writes what later steps and the model's user read."""
    graph = model.graph
    weights = {w.name: w for w in graph.initializer}
    kinds = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    needed = {v.name for v in graph.output}
    for step in later:
        needed |= {step.reads} if isinstance(step, _Product) else {x for n in step for x in n.input}
    inside = dict.fromkeys(y for n in nodes for y in n.output)
    read = dict.fromkeys(x for n in nodes for x in n.input if x)
    reads = [x for x in read if x not in inside and x not in weights]
    writes = [y for y in inside if y in needed]
    made = onnx.helper.make_graph(
        nodes,
        graph.name,
        [kinds[x] for x in reads],
        [kinds[y] for y in writes],
        [weights[x] for x in read if x in weights],
    )
    part = onnx.helper.make_model(
        made, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    return _Part(ort.load(part, 1, entries=ort_low.EXACT), reads, writes)


def _geometry(given: Mapping[str, Any], size: Sequence[int]) -> dict[str, list[int]]:
    """Pads, strides and dilations of a convolution whose filters have this size.

    Raises:
        ValueError: its padding depends on the size of its input.
    """
    strides, dilations = (list(given.get(k, (1, 1))) for k in ("strides", "dilations"))
    pads = list(given.get("pads", (0, 0, 0, 0)))
    how = given.get("auto_pad", b"NOTSET")
    if how == b"SAME_UPPER" and strides == [1, 1]:
        rest = [d * (n - 1) for n, d in zip(size, dilations, strict=True)]
        pads = [n // 2 for n in rest] + [n - n // 2 for n in rest]
    elif how not in (b"NOTSET", b"VALID"):
        raise ValueError(f"a convolution with auto_pad {how.decode()} is not simulated")
    return {"pads": pads, "strides": strides, "dilations": dilations}


def measure(name: str, samples: int, place: Path) -> tuple[dict[str, Score], pd.DataFrame]:
    """The scores of a task's int8 file with and without saturation, and the table of its layers.

    Keys are `exact`, `saturating` and `7-bit weights`, which cannot saturate.
    """
    task = accuracy.task(name)
    original = Original(task.model, task.calibration, place)
    model = original.quantised()
    sessions = {
        "exact": Simulation(model, saturate=False),
        "saturating": Simulation(model, saturate=True),
        "7-bit weights": Simulation(original.quantised(7), saturate=True),
    }
    chosen = itertools.islice(task.samples(), samples)
    counted = scores(chosen, Loader(original, None).float32(), sessions)
    return counted, sessions["exact"].table


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
