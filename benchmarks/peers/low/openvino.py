"""OpenVINO on quantised models.

What is not quantised runs in the precision that the plugin prefers, which is bfloat16 where the
processor has it. The environment variable ONEDNN_MAX_CPU_ISA, set to AVX2, restricts the kernels
for convolutions (some others keep AVX-512). The plugin does not know of the restriction, and
fails if it prefers bfloat16, so then it gets float32.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import onnx

from fastrun.benchmarks.peers import openvino
from fastrun.benchmarks.peers.low.original import Original

packages = (*openvino.packages, "nncf")

LIMIT = "ONEDNN_MAX_CPU_ISA"


def from_file(original: Original, threads: int) -> openvino.Session:
    """The QDQ file that onnxruntime runs."""
    return _compiled(openvino.read(original.quantised()), threads)


def from_nncf(original: Original, threads: int) -> openvino.Session:
    """Quantised by its own tool."""
    folder = original.made("nncf", lambda folder: _nncf(original, folder))
    return _compiled(openvino.read(folder / "model.xml"), threads)


def bfloat16(original: Original, threads: int) -> openvino.Session:
    """Not quantised: the processor's bfloat16 instructions, as it goes by default."""
    return _compiled(openvino.read(original.model), threads)


def _compiled(model: Any, threads: int) -> openvino.Session:
    limited = os.environ.get(LIMIT)
    more = {"INFERENCE_PRECISION_HINT": "f32"} if limited else {}
    return openvino.compiled(model, threads, more=more)


def _nncf(original: Original, folder: Path) -> None:
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    items = nncf.Dataset([dict(feeds) for feeds in original.calibration])
    # Its documentation asks for this. Without it PP-OCR reads 3 of 300 strings.
    attention = nncf.ModelType.TRANSFORMER if _multiplies(original.model) else None
    model = nncf.quantize(
        openvino.read(original.model),
        items,
        preset=nncf.QuantizationPreset.MIXED,
        model_type=attention,
    )
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)


def _multiplies(model: onnx.ModelProto) -> bool:
    """Whether computed tensors are multiplied with each other, as in attention."""
    fixed = {w.name for w in model.graph.initializer}
    for node in model.graph.node:
        if fixed.issuperset(node.input):  # computed of constants alone
            fixed.update(node.output)
        elif node.op_type == "MatMul" and fixed.isdisjoint(node.input):
            return True
    return False
