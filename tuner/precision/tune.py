"""Tunes the precision of a network: from measured layers to a mixed network within a loss."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.advised import Advised
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import convolutions
from fastrun.graph.passes.products import convolve_dense
from fastrun.graph.quantise.network import BITS, Progress, calibrated, silent
from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.types import Types
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.networks.calibration import batches, read_samples
from fastrun.tuner.networks.costs import costs
from fastrun.tuner.networks.measured_choices import stored_choices
from fastrun.tuner.networks.pictures import Preparation
from fastrun.tuner.precision.kept import front_file
from fastrun.tuner.precision.search import Precision, choose_precision
from fastrun.tuner.precision.sensitivity import Batch, losses
from fastrun.tuner.records.record import Limits
from fastrun.tuner.store.database import Database

_LABELS = "labels"
# Batches that calibrate, and those on which the loss by each layer is measured.
_CALIBRATION, _SENSED = 128, 8
# The share of the time for the loss by each layer; the rest is for whole networks.
_SENSING = 0.3


def examples(
    graph: Graph, source: Path, pictures: Preparation
) -> tuple[list[Batch], NDArray[np.int64] | None]:
    """All inputs in batches of the network's size, and their labels if there are any.

    `source` is as for calibration data: a folder of pictures or arrays, or a file of arrays (.npz),
    in which there may also be `labels`. Examples that do not fill a batch are left out.

    Raises:
        InputError: there are no data, they or their labels do not fit, or a value is not finite.
        OSError: a file cannot be read.
    """
    file = source.suffix == ".npz" and not source.is_dir()
    apart = (_LABELS,) if file and _LABELS not in graph.inputs else ()
    inputs = replace(graph, unread=(*graph.unread, *apart))
    found = read_samples(inputs, source, pictures, sys.maxsize)
    given, size = len(found[graph.inputs[0]]), graph.shape(graph.inputs[0])[0]
    count = given - given % size
    if not count:
        raise InputError(f"{source}: {given} examples are less than a batch ({size})")
    data: list[Batch] = [*batches(graph, {x: a[:count] for x, a in found.items()})]
    labels = _labels(source) if apart else None
    if labels is None:
        return data, None
    if labels.shape[:1] != (given,):
        raise InputError(
            f"{source}: labels of the shape {labels.shape} for {given} examples: give one for each"
        )
    return data, labels[:count].reshape(-1)


def _labels(file: Path) -> NDArray[np.int64] | None:
    with np.load(file) as archive:
        labels = archive.get(_LABELS)
    if labels is None:
        return None
    if labels.dtype.kind not in "iu":
        raise InputError(f"{file}: labels are numbers of classes, not {labels.dtype}")
    found: NDArray[np.int64] = labels.astype(np.int64)
    return found


def advise(graph: Graph, data: Sequence[Batch], cpu: Cpu, progress: Progress = silent) -> Advised:
    """How an optimised float32 network may be rounded; dense layers are convolutions then.

    Those of the data calibrate that `shared_out` says. Weights may have fewer than 8 bits if the
    processor gains by it.

    Raises:
        UnsupportedError: there is nothing to quantise, or a node cannot be run.
        InputError: the data do not fit the inputs.
    """
    some = [data[i] for i in shared_out(len(data))[0]]
    return calibrated(graph, some, worthwhile_bits(cpu), progress).each(convolve_dense)


def worthwhile_bits(cpu: Cpu) -> list[int]:
    """The numbers of bits of weights, each of which allows a faster dot product than more bits."""
    kinds = {bits: dots(Types.parse(f"u8s{bits}"), cpu) for bits in BITS}
    found = dict[str, int]()
    for bits, able in kinds.items():
        if able:
            found.setdefault(able[0].name, bits)
    return [*found.values()] or [BITS[0]]


def problems_of(network: Advised) -> tuple[tuple[Problem, int], ...]:
    """The distinct problems that a search must measure, and how often the network has each."""
    found = dict[Problem, int]()
    for graph in network.rounded.values():
        found |= {p: occurrences for p, occurrences, _ in convolutions(graph)}
    return tuple(found.items())


def shared_out(batches: int) -> tuple[list[int], list[int]]:
    """The batches that calibrate, and the others, on which whole networks are judged.

    A single batch does both.
    """
    calibrating = _spread(-(-batches // 2), _CALIBRATION, 2)
    others = [i for i in range(batches) if i not in calibrating]
    return calibrating, others or calibrating


def _spread(count: int, most: int, step: int = 1) -> list[int]:
    """At most so many of `count` numbers that are `step` apart, evenly spread over them."""
    return [step * round(i) for i in np.linspace(0, count - 1, min(count, most))]


def tune_precision(
    graph: Graph,
    advised: Advised,
    data: Sequence[Batch],
    labels: NDArray[np.int64] | None,
    limit: float,
    database: Database,
    threads: int,
    limits: Limits,
    progress: Progress = silent,
    seconds: float = math.inf,
) -> Precision:
    """The fastest precision within a limit, by the records of a database; its front is kept.

    `advised` says how the network `graph` may be rounded. The loss of each layer is measured on
    data that calibrated, that of whole networks on the others. Where `seconds` are short, the loss
    is measured on fewer batches, and fewer whole networks are validated: at least float32, 8 bits
    everywhere and the fastest plan.

    Raises:
        UnsupportedError: a node cannot be run.
        InputError: there is not a label for each example.
        DatabaseError: the database cannot be read.
    """
    cpu, ends = Cpu.host(), monotonic() + seconds
    choose = functools.cache(stored_choices(database, cpu, threads, limits))
    calibrating, judging = shared_out(len(data))
    known = [data[calibrating[i]] for i in _spread(len(calibrating), _SENSED)]
    found = losses(advised, known, cpu, progress, _SENSING * seconds)
    moving = costs(probe(), threads)
    others = [data[i] for i in judging]
    if labels is not None:
        labels = labels.reshape(len(data), -1)[judging].reshape(-1)
    done = choose_precision(
        advised, found, others, labels, limit, choose, moving, cpu, threads, progress, ends
    )
    done.save(front_file(graph.digest, cpu.fingerprint, threads))
    return done
