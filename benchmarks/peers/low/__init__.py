"""The other engines in low precision, each set up as its users run it there.

A variant is an engine together with a way to lower a network's precision. Unlike the engines of
`peers` it is not refused if its outputs differ from float32: its accuracy is measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastrun.benchmarks.peers import Session
from fastrun.benchmarks.peers.low import litert, ncnn, openvino, ort
from fastrun.benchmarks.peers.low.original import Original
from fastrun.kernels.core.cpu import Cpu


@dataclass(frozen=True)
class Variant:
    """An engine in low precision.

    `load` takes a network and a number of threads; it raises LoadError if it cannot. `features`
    are those of the processor without which it is the same as in float32.
    """

    title: str
    load: Callable[[Original, int], Session]
    packages: Sequence[str]
    features: Sequence[str] = ()


VARIANTS = {
    "ort-u8s8": Variant(
        "onnxruntime, QDQ file, u8 activations, s8 weights per channel", ort.usual, ort.packages
    ),
    "ort-u8s7": Variant(
        "the same with weights of 7 bits (reduce_range)", ort.reduced, ort.packages
    ),
    "ort-exact": Variant(
        "the file of ort-u8s8 with session.x64quantprecision", ort.exact, ort.packages
    ),
    "ort-own": Variant(
        "onnxruntime on the file of fastrun's quantiser, 7-bit weights", ort.own, ort.packages
    ),
    "openvino-qdq": Variant(
        "OpenVINO on the file of ort-u8s8", openvino.from_file, openvino.packages[:1]
    ),
    "openvino-nncf": Variant(
        "OpenVINO, quantised by NNCF, preset MIXED", openvino.from_nncf, openvino.packages
    ),
    "openvino-bf16": Variant(
        "OpenVINO in bfloat16", openvino.bfloat16, openvino.packages[:1], ("avx512bf16",)
    ),
    "ncnn-int8": Variant("ncnn, int8 weights and activations", ncnn.load, ncnn.packages),
    "litert-int8": Variant(
        "LiteRT (XNNPACK), quantised by its own tool", litert.load, litert.packages
    ),
}


def missing(name: str) -> str | None:
    """The reason why a variant cannot be used here; None if it can."""
    variant = VARIANTS[name]
    absent = [p for p in variant.packages if importlib.util.find_spec(p) is None]
    if absent:
        return f"{absent[0]} is not installed: pip install '.[peers,accuracy,litert]'"
    has = Cpu.host().features.split(",")
    lacks = [f for f in variant.features if f"+{f}" not in has]
    return f"the processor has no {lacks[0]}" if lacks else None
