"""Tunes the precision of a network: from measured layers to a mixed network within a loss."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Graph
from fastrun.graph.passes.products import convolve_dense
from fastrun.graph.quantise.network import calibrated
from fastrun.kernels.core.cpu import Cpu
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


def advised(graph: Graph, data: Sequence[Batch]) -> Graph:
    """An optimised float32 network with advised grids; dense layers are convolutions then.

    Raises:
        UnsupportedError: there is nothing to quantise, or a node cannot be run.
        InputError: the data do not fit the inputs.
    """
    return convolve_dense(calibrated(graph, data))


def tune_precision(
    graph: Graph,
    grids: Graph,
    data: Sequence[Batch],
    labels: NDArray[np.int64] | None,
    limit: float,
    database: Database,
    threads: int,
    limits: Limits,
    progress: Callable[[str], None] = lambda text: None,
) -> Precision:
    """The fastest precision within a limit, by the records of a database; its front is kept.

    `grids` is the network `graph` as `advised` gives it. The loss of each layer is measured on
    `data`, and so is that of whole networks.

    Raises:
        UnsupportedError: a node cannot be run.
        InputError: there is not a label for each example.
        DatabaseError: the database cannot be read.
    """
    cpu = Cpu.host()

    def measuring(done: int, of: int) -> None:
        progress(f"loss of tensor or weights {done + 1} of {of}")

    choose = functools.cache(stored_choices(database, cpu, threads, limits))
    found = losses(grids, data, cpu, measuring)
    moving = costs(probe(), threads)
    done = choose_precision(
        grids, found, data, labels, limit, choose, moving, cpu, threads, progress
    )
    done.save(front_file(graph.digest, cpu.fingerprint, threads))
    return done
