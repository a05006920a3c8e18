"""ncnn in int8: convolutions and dense layers; activations and weights are s8.

The tools ncnn2table and ncnn2int8 are not in its Python package. So this file writes what they
write: scales, int8 weights, and requantisation from one convolution to the next. Weights of 3x3
convolutions of stride 1 have 6 bits, because those run as Winograd with 16-bit sums. A scale of
activations is that of their largest magnitude; the tool's default would cut off rare large values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from fastrun.benchmarks.peers import Array, LoadError, ncnn, shapes
from fastrun.benchmarks.peers.low.original import Original

packages = ncnn.packages

_DENSE, _CONV, _DEPTHWISE = "InnerProduct", "Convolution", "ConvolutionDepthWise"
_WITHOUT_WEIGHTS = {
    "BinaryOp", "Clip", "Concat", "Dropout", "Flatten", "HardSigmoid", "HardSwish", "Input",
    "Pooling", "ReLU", "Reshape", "ShuffleChannel", "Sigmoid", "Slice", "Softmax", "Split",
    "Swish",
}  # fmt: skip

# The numbers of parameters in a line of ncnn's text file.
_OUTPUTS, _WIDTH, _STRIDE, _BIAS, _SIZE, _GROUPS, _INT8 = "0", "1", "3", "5", "6", "7", "8"
_HEIGHT, _STRIDE_Y = "11", "13"
_DENSE_BIAS, _DENSE_SIZE = "1", "2"

_FLOAT32, _BYTES = 0, 0x000D4B38  # marks before weights
_FUSED = 100  # added to _INT8 where the output is int8 as well


@dataclass(frozen=True)
class Layer:
    """A layer of ncnn's text file with its weights in float32, if it has any."""

    kind: str
    name: str
    reads: Sequence[str]
    writes: Sequence[str]
    values: Mapping[str, str]
    weights: Array | None = None
    bias: Array | None = None

    def number(self, key: str, default: int = 0) -> int:
        return int(self.values.get(key, default))

    @property
    def line(self) -> str:
        """The layer's line of the file."""
        values = [f"{k}={v}" for k, v in self.values.items()]
        counts = [str(len(self.reads)), str(len(self.writes))]
        return " ".join([self.kind, self.name, *counts, *self.reads, *self.writes, *values])

    @property
    def largest(self) -> int:
        """The largest magnitude of its int8 weights."""
        sizes = [self.number(k, self.number(_WIDTH)) for k in (_WIDTH, _HEIGHT)]
        strides = self.number(_STRIDE, 1), self.number(_STRIDE_Y, self.number(_STRIDE, 1))
        winograd = self.kind == _CONV and sizes == [3, 3] and strides == (1, 1)
        return 31 if winograd else 127


def load(original: Original, threads: int) -> ncnn.Session:
    folder = original.made("ncnn", lambda folder: _convert(original, folder))
    return ncnn.Session(folder / "int8", list(shapes(original.model)), threads, inner=False)


def _convert(original: Original, folder: Path) -> None:
    onnx.save(original.model, folder / "model.onnx")
    ncnn.convert(folder)
    layers = list(_read(folder / "model.ncnn"))
    heads = {x.reads[0] for x in layers if x.weights is not None}
    peaks = _peaks(folder / "model.ncnn", original, heads)
    _write(folder / "int8", layers, peaks)


def _read(stem: Path) -> Iterator[Layer]:
    """The layers of a network that pnnx wrote in float32.

    Raises:
        LoadError: a layer may have weights that this file does not know.
    """
    data = memoryview(Path(f"{stem}.bin").read_bytes())
    for line in Path(f"{stem}.param").read_text().splitlines()[2:]:
        kind, name, reads, writes, *rest = line.split()
        i, j = int(reads), int(reads) + int(writes)
        values = dict(word.split("=") for word in rest[j:])
        layer = Layer(kind, name, rest[:i], rest[i:j], values)
        if kind in (_CONV, _DEPTHWISE, _DENSE):
            size = layer.number(_DENSE_SIZE if kind == _DENSE else _SIZE)
            outputs = layer.number(_OUTPUTS)
            biased = outputs if layer.number(_DENSE_BIAS if kind == _DENSE else _BIAS) else 0
            assert int.from_bytes(data[:4], "little") == _FLOAT32
            found: Array = np.frombuffer(data[4:], np.float32, size + biased)
            data = data[4 + found.nbytes :]
            rows = layer.number(_GROUPS) if kind == _DEPTHWISE else outputs
            layer = replace(layer, weights=found[:size].reshape(rows, -1), bias=found[size:])
        elif kind not in _WITHOUT_WEIGHTS:
            raise LoadError(f"ncnn's tool for int8 is not in its package; {kind} is not known here")
        yield layer


def _peaks(stem: Path, original: Original, tensors: set[str]) -> dict[str, float]:
    """The largest magnitude of each tensor over the calibration data."""
    session = ncnn.Session(stem, list(shapes(original.model)), 1, inner=False)
    peaks = dict.fromkeys(tensors, 0.0)
    for feeds in original.calibration:
        for name, values in session.tensors(feeds, sorted(tensors)).items():
            peaks[name] = max(peaks[name], float(np.abs(values).max()))
    return peaks


def _write(stem: Path, layers: Sequence[Layer], peaks: Mapping[str, float]) -> None:
    """The files of the int8 network."""
    lines, parts = [], []
    for layer in layers:
        if layer.weights is None:
            lines.append(layer.line)
            continue
        after = _only_reader(layer, layers)
        fused = after is not None and layer.kind != _DENSE
        term = (1 if layer.kind == _DEPTHWISE else 2) + _FUSED * fused
        lines.append(replace(layer, values={**layer.values, _INT8: str(term)}).line)
        scales = layer.largest / np.maximum(np.abs(layer.weights).max(1), 1e-30)
        stored = np.rint(layer.weights * scales[:, None]).astype(np.int8).tobytes()
        parts += [_BYTES.to_bytes(4, "little"), stored, bytes(-len(stored) % 4)]
        assert layer.bias is not None
        parts += [layer.bias.tobytes(), scales.astype(np.float32).tobytes()]
        read = [layer.reads[0], *(after.reads if fused and after else ())]
        parts.append(np.array([127 / peaks[x] for x in read], np.float32).tobytes())
    blobs = len({y for x in layers for y in x.writes})
    head = ["7767517", f"{len(lines)} {blobs}"]
    Path(f"{stem}.param").write_text("\n".join([*head, *lines, ""]))
    Path(f"{stem}.bin").write_bytes(b"".join(parts))


def _only_reader(layer: Layer, layers: Sequence[Layer]) -> Layer | None:
    """The convolution that alone reads a layer's output; None if there is none."""
    readers = [x for x in layers if layer.writes[0] in x.reads]
    alone = len(readers) == 1 and readers[0].kind in (_CONV, _DEPTHWISE)
    return readers[0] if alone else None
