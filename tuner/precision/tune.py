"""Tunes the precision of a network: from measured layers to a mixed network within a loss."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.advised import Advised
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.problems import convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.passes.products import convolve_dense
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import make_plan
from fastrun.graph.quantise.network import BITS, calibrated
from fastrun.graph.quantise.observe import Batch
from fastrun.graph.quantise.progress import Progress, silent
from fastrun.graph.quantise.sensitivity import losses
from fastrun.graph.quantise.simulate import class_axis
from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.rounding import roundings
from fastrun.kernels.core.types import Types
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.networks.calibration import batches, read_samples
from fastrun.tuner.networks.costs import costs
from fastrun.tuner.networks.measured_choices import stored_choices
from fastrun.tuner.networks.pictures import Preparation
from fastrun.tuner.precision.front import allowed_types
from fastrun.tuner.precision.kept import front_file
from fastrun.tuner.precision.search import Precision, Right, choose_precision, classes, has_classes
from fastrun.tuner.records.record import Limits
from fastrun.tuner.store.database import Database

_LABELS = "labels"
# Batches that calibrate, and those on which the loss by each layer is measured.
_CALIBRATION, _SENSED = 128, 8
# The share of the time for the loss by each layer; the rest is for whole networks.
_SENSING = 0.3
# Parts of 1 by which numbers go on that are spread evenly however many there are.
_GOLDEN = (5**0.5 - 1) / 2


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
    _check_classes(graph, labels, source)
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


def _check_classes(graph: Graph, labels: NDArray[np.int64], file: Path) -> None:
    """Check that labels are classes of the first output; one for each place may be none of them.

    Raises:
        InputError: they are not.
    """
    shape = graph.shape(graph.outputs[0])
    known = shape[class_axis(len(shape))] if len(shape) > 1 else 1
    wrong = labels[(labels < 0) | (labels >= known)]
    if known > 1 and wrong.size and (len(shape) == 2 or wrong.size == labels.size):
        raise InputError(f"{file}: label {wrong[0]}: the network has the classes 0 to {known - 1}")


def advise(
    graph: Graph,
    data: Sequence[Batch],
    cpu: Cpu,
    progress: Progress = silent,
    seconds: float = math.inf,
) -> Advised:
    """How an optimised float32 network may be rounded; dense layers are convolutions then.

    Those of the data calibrate that `shared_out` says, or as many of them as `seconds` allow.
    Weights may have fewer than 8 bits if the processor gains by it.

    Raises:
        UnsupportedError: there is nothing to quantise, or a node cannot be run.
        InputError: the data do not fit the inputs.
    """
    some = [data[i] for i in shared_out(len(data))[0]]
    return calibrated(graph, some, worthwhile_bits(cpu), progress, seconds).each(convolve_dense)


def worthwhile_bits(cpu: Cpu) -> list[int]:
    """The numbers of bits of weights, each of which allows a faster dot product than more bits."""
    kinds = {bits: dots(Types.parse(f"u8s{bits}"), cpu) for bits in BITS}
    found = dict[str, int]()
    for bits, able in kinds.items():
        if able:
            found.setdefault(able[0].name, bits)
    return [*found.values()] or [BITS[0]]


def problems_of(network: Advised, cpu: Cpu) -> tuple[tuple[Problem, int], ...]:
    """The distinct problems that a search must measure, and how often the network has each.

    Those of float32 are there with each of the types of 16 bits that may be faster, too.
    """
    found, halves = dict[Problem, int](), roundings(math.inf, cpu)
    for graph in network.rounded.values():
        found |= {p: occurrences for p, occurrences, _ in convolutions(graph)}
    for p, occurrences in tuple(found.items()):
        if isinstance(p, ConvProblem):
            found |= {replace(p, types=types): occurrences for types in halves(p)}
    return tuple(found.items())


def shared_out(batches: int) -> tuple[list[int], list[int]]:
    """The batches that calibrate, and the others, on which whole networks are judged.

    A single batch does both. The first ones of each are spread evenly over all, however few.
    """
    calibrating = _scattered(_spread(-(-batches // 2), _CALIBRATION, 2))
    others = _scattered([i for i in range(batches) if i not in calibrating])
    return calibrating, others or calibrating


def _scattered(numbers: Sequence[int]) -> list[int]:
    """The numbers in another order, in which the first ones are spread over all."""
    places = np.argsort(np.argsort(np.arange(len(numbers)) * _GOLDEN % 1))
    return [numbers[i] for i in places]


def _spread(count: int, most: int, step: int = 1) -> list[int]:
    """At most so many of `count` numbers that are `step` apart, evenly spread over them."""
    return [step * round(i) for i in np.linspace(0, count - 1, min(count, most))]


def as_labelled(labels: NDArray[np.int64], outputs: Sequence[Array]) -> NDArray[np.bool_]:
    """Whether outputs of the first batches name the classes of their labels (batches, labels).

    Raises:
        InputError: there is not a label for each class that is named.
    """
    if not has_classes(outputs[0]):
        raise InputError("labels need an output with a number for each class: leave them out")
    named, known = classes(outputs), labels[: len(outputs)].reshape(-1)
    if named.shape != known.shape:
        raise InputError(f"{len(known)} labels do not fit {len(named)} classes that are named")
    found: NDArray[np.bool_] = named == known
    return found


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
    data that calibrated, that of whole networks on the others. Where `seconds` are short, both are
    measured on fewer batches, and fewer whole networks are validated: at least float32, 8 bits
    everywhere and the fastest plan.

    Raises:
        UnsupportedError: a node cannot be run.
        InputError: there is not a label for each class that an output names.
        DatabaseError: the database cannot be read.
    """
    cpu, ends = Cpu.host(), monotonic() + seconds
    choose = functools.cache(stored_choices(database, cpu, threads, limits))
    calibrating, judging = shared_out(len(data))
    known = [data[i] for i in calibrating[:_SENSED]]
    found = losses(advised, known, cpu, progress, _SENSING * seconds)
    moving = costs(probe(), threads)
    others = [data[i] for i in judging]
    right: Right | None = None
    if labels is not None:
        right = functools.partial(as_labelled, labels.reshape(len(data), -1)[judging])
    done = choose_precision(
        advised, found, others, right, limit, choose, moving, cpu, threads, progress, ends
    )
    done.save(front_file(graph.digest, cpu.fingerprint, threads))
    return done


def plan_of_file(
    model: Path, types: Mapping[str, str], database: Database, threads: int, limits: Limits
) -> Plan:
    """The plan of the network that was chosen, and written to a file with other tensors' names.

    `types` are those of its layers that are in float32 with 16 bits.

    Raises:
        GraphError: the file cannot be used.
        DatabaseError: the database cannot be read.
    """
    cpu, graph = Cpu.host(), optimise(load_network(model, {}))
    choose = functools.cache(stored_choices(database, cpu, threads, limits))
    return make_plan(
        graph, choose, cpu, costs(probe(), threads), threads, roundings(math.inf, cpu),
        allowed=allowed_types(types),
    )[0]  # fmt: skip
