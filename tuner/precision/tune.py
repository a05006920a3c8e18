"""Tunes the precision of a network: from measured layers to a mixed network within a loss."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Graph
from fastrun.graph.passes.products import convolve_dense
from fastrun.graph.quantise.network import calibrated
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.networks.costs import costs
from fastrun.tuner.networks.measured_choices import stored_choices
from fastrun.tuner.precision.search import Precision, choose_precision, front_file
from fastrun.tuner.precision.sensitivity import Batch, losses
from fastrun.tuner.records.record import Limits
from fastrun.tuner.store.database import Database


def examples(graph: Graph, file: Path) -> tuple[list[Batch], NDArray[np.int64] | None]:
    """Inputs in batches of the network's size, and their labels, of a file of arrays (.npz).

    It has an array for each input, whose first axis counts examples, and maybe `labels`. Examples
    that do not fill a batch are left out.

    Raises:
        InputError: the file is no such archive, an array does not fit, or a value is not finite.
        OSError: the file cannot be read.
    """
    try:
        with np.load(file) as archive:
            arrays = dict(archive)
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: not an archive of arrays (.npz): {error}") from None
    sizes = set[int]()
    for name in graph.inputs:
        shape = graph.shape(name)
        found = arrays.get(name)
        if found is None or found.ndim != len(shape) or found.shape[1:] != shape[1:]:
            wanted = "x".join(map(str, ("N", *shape[1:])))
            raise InputError(f"{file}: give an array {name!r} of {wanted}, for N examples")
        if found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise InputError(f"{file}: the array {name!r} has values that are no finite numbers")
        sizes.add(len(found) // shape[0])
    if len(sizes) != 1 or sizes == {0}:
        raise InputError(f"{file}: give as many examples for every input, a batch at least")
    data: list[Batch] = [
        {
            name: arrays[name][i * n : (i + 1) * n].astype(np.float32)
            for name in graph.inputs
            if (n := graph.shape(name)[0])
        }
        for i in range(sizes.pop())
    ]
    labels = arrays.get("labels")
    if labels is None:
        return data, None
    if labels.dtype.kind not in "iu":
        raise InputError(f"{file}: labels are numbers of classes, not {labels.dtype}")
    count = len(data) * graph.shape(graph.inputs[0])[0]
    kept: NDArray[np.int64] = labels.reshape(-1)[:count].astype(np.int64)
    return data, kept


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
