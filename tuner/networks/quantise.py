"""Quantise a network: model and calibration data in, a QDQ model out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from fastrun.graph.core.model import Graph
from fastrun.graph.networks import find_model, load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.quantise.network import (
    BITS,
    CHOICES,
    REFINED,
    ROUNDINGS,
)
from fastrun.graph.quantise.network import quantise as quantise_graph
from fastrun.graph.quantise.progress import Progress, silent
from fastrun.graph.quantise.scope import is_layer
from fastrun.graph.quantise.simulate import Difference, differences
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.kernels.core.whole_file import write_whole
from fastrun.tuner.networks.calibration import Source, calibration_data
from fastrun.tuner.networks.pictures import Preparation

SAMPLES = 128
"""Samples to calibrate with, unless the caller wants others."""


@dataclass(frozen=True)
class Quantised:
    """A quantised network.

    `graph` has grids for the tensors in 8 bits, `model` is the same as an ONNX model (QDQ).
    `differences` from float32 are those of each output on the calibration data, of which there
    were `batches`. `layers` are in 8 bits; `kept` are convolutions and dense layers in float32.
    """

    graph: Graph
    model: onnx.ModelProto
    differences: Mapping[str, Difference]
    batches: int
    layers: Sequence[str]
    kept: Sequence[str]

    def save(self, path: str | Path) -> None:
        """Write the model as an ONNX file.

        Raises:
            OSError: it cannot be written.
        """
        write_whole(Path(path), self.model.SerializeToString())


def quantise(
    source: str | Path | onnx.ModelProto,
    calibrate: Source,
    *,
    bits: int = 8,
    ranges: str = REFINED,
    rounding: str = "gptq",
    keep: Collection[str] = (),
    min_sqnr: float = -math.inf,
    shapes: Mapping[str, Sequence[int]] | None = None,
    pictures: Preparation | None = None,
    samples: int = SAMPLES,
    progress: Progress = silent,
) -> Quantised:
    """Quantise a built-in network by name, an ONNX file or an ONNX model, as `fastrun quantise`.

    `calibrate` has inputs like those in use: a folder of pictures (prepared as `pictures` says) or
    of .npy and .npz files, a .npz file, or arrays by the inputs' names, whose first axis counts
    samples. At most `samples` are used. Activations become unsigned bytes whose ranges `ranges`
    chooses: "minmax", "percentile", "mse" or "outputs". Weights become signed ones of `bits` bits,
    4 to 8, which are rounded by "gptq" or to "nearest". The layers named in `keep` stay in float32,
    and so many others that the SQNR of each output is at least `min_sqnr` decibels. `shapes` gives
    or overrides the shapes of inputs. `progress` is called with what is being done, how many parts
    of it are done, and of how many.

    Raises:
        GraphError: the model or the calibration data cannot be used, or nothing can be quantised.
        OSError: a file cannot be read.
        ValueError: there is no such choice of `bits`, `ranges` or `rounding`, or `min_sqnr` is no
            number.
    """
    for name, value, known in (
        ("bits", bits, BITS),
        ("ranges", ranges, CHOICES),
        ("rounding", rounding, ROUNDINGS),
    ):
        if value not in known:
            raise ValueError(f"no {name} {value!r}: use one of {', '.join(map(str, known))}")
    if math.isnan(min_sqnr):
        raise ValueError("min_sqnr is no number: give decibels")
    graph = optimise(load_network(source, shapes))
    graph.check_supported()
    data = calibration_data(graph, calibrate, pictures or Preparation(), samples)
    done = quantise_graph(
        graph,
        data,
        bits=bits,
        ranges=ranges,
        rounding=rounding,
        keep=keep,
        min_sqnr=min_sqnr,
        progress=progress,
    )
    layers = [node.name for node in graph.nodes if is_layer(graph, node)]
    in_bytes = {node.name for node in done.nodes if node.input(1) in done.grids}
    return Quantised(
        done,
        export_onnx(done, _metadata(source)),
        differences(graph, done, data),
        len(data),
        [name for name in layers if name in in_bytes],
        [name for name in layers if name not in in_bytes],
    )


def _metadata(source: str | Path | onnx.ModelProto) -> dict[str, str]:
    """What a model says about itself, such as the characters of its classes."""
    found = find_model(source)
    proto = found if isinstance(found, onnx.ModelProto) else found.proto
    return {entry.key: entry.value for entry in proto.metadata_props}
