"""Tunes the precision of a network: from measured layers to a mixed network within a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

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
    done.save(front_file(graph, cpu.fingerprint, threads))
    return done
