"""onnxruntime on quantised files.

Before AVX-512 VNNI its u8s8 kernels add two products in 16 bits, which saturates. 7-bit weights
avoid that, and so do the kernels that `session.x64quantprecision` chooses (onnxruntime, pull
request 12088).
"""

from __future__ import annotations

from fastrun.benchmarks.peers import ort
from fastrun.benchmarks.peers.low.original import Original

packages = ort.packages

EXACT = {"session.x64quantprecision": "1"}
"""Entries of a session's configuration that choose kernels which do not saturate."""


def usual(original: Original, threads: int) -> ort.Session:
    """As it goes by default."""
    return ort.load(original.quantised(), threads)


def reduced(original: Original, threads: int) -> ort.Session:
    """With weights of 7 bits."""
    return ort.load(original.quantised(7), threads)


def exact(original: Original, threads: int) -> ort.Session:
    """With kernels that do not saturate."""
    return ort.load(original.quantised(), threads, entries=EXACT)


def own(original: Original, threads: int) -> ort.Session:
    """The file of fastrun's quantiser, with weights of 7 bits."""
    return ort.load(original.own(7), threads)
