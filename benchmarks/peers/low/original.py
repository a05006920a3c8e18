"""What the variants start from: a float32 network, calibration data, and files made of them."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from fastrun.benchmarks.peers import Array
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.quantise.network import quantise
from fastrun.graph.to_onnx.model import export_onnx

_OPSET = 17  # scales per channel are possible from 13 on


class Original:
    """A float32 network of fixed shapes, and inputs to calibrate with.

    Files made of both are kept in a folder of `place`, whose name is a hash of both.
    """

    def __init__(
        self, model: onnx.ModelProto, calibration: Sequence[Mapping[str, Array]], place: Path
    ) -> None:
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        if opset < _OPSET:
            model = onnx.version_converter.convert_version(model, _OPSET)
        self.model = model
        self.calibration = calibration
        digest = hashlib.sha256(model.SerializeToString(deterministic=True))
        for feeds in calibration:
            for name in sorted(feeds):
                digest.update(feeds[name].tobytes())
        self._folder = place / digest.hexdigest()[:12]

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder of this name; `make` has filled it, now or in an earlier run."""
        path = self._folder / name
        if not path.exists():
            part = self._folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            make(part)
            part.rename(path)
        return path

    def quantised(self, bits: int = 8) -> onnx.ModelProto:
        """The QDQ file of onnxruntime's quantiser: u8 activations, s8 weights per channel.

        Its documentation advises these types on x86. Weights have 7 or 8 bits; ranges are from the
        smallest to the largest value of the calibration data.
        """
        return onnx.load(self.made(f"u8s{bits}", lambda f: self._quantise(f, bits)) / "model.onnx")

    def own(self, bits: int = 8) -> onnx.ModelProto:
        """The QDQ file of fastrun's quantiser, with weights of `bits` bits.

        Raises:
            GraphError: it cannot quantise the network.
        """
        return onnx.load(self.made(f"own{bits}", lambda f: self._own(f, bits)) / "model.onnx")

    def _own(self, folder: Path, bits: int) -> None:
        graph = optimise(import_onnx(self.model))
        onnx.save(export_onnx(quantise(graph, self.calibration, bits=bits)), folder / "model.onnx")

    def _quantise(self, folder: Path, bits: int) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        source, prepared = folder / "float32.onnx", folder / "prepared.onnx"
        onnx.save(self.model, source)
        logging.disable(logging.WARNING)  # which operators stay in float32
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(folder / "model.onnx"),
                _Reader(self.calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=bits == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
        source.unlink()
        prepared.unlink()


class _Reader:
    """The calibration data as onnxruntime's quantiser reads it."""

    def __init__(self, items: Sequence[Mapping[str, Array]]) -> None:
        self._items: Iterator[Mapping[str, Array]] = iter(items)

    def get_next(self) -> dict[str, Array] | None:
        feeds = next(self._items, None)
        return None if feeds is None else dict(feeds)
