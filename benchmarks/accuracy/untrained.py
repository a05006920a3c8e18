"""The built-in networks. Their weights are random, so they have errors but no right answers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np

from fastrun.benchmarks.accuracy.task import CALIBRATION, TEST, Feeds, Sample, Task, draws
from fastrun.benchmarks.peers import shapes
from fastrun.graph import zoo

_CALIBRATION = 16  # inputs


def untrained(name: str) -> Task:
    """A built-in network on inputs of the normal distribution.

    Raises:
        ModelFileError: there is no such network.
    """
    model = zoo.build(name)

    def feeds(kind: int, i: int) -> Feeds:
        draw = draws(kind, i)
        return {
            k: draw.standard_normal(shape, dtype=np.float32) for k, shape in shapes(model).items()
        }

    def samples() -> Iterator[Sample]:
        return (Sample(feeds(TEST, i)) for i in count())

    return Task(name, model, [feeds(CALIBRATION, i) for i in range(_CALIBRATION)], samples)
