"""PP-OCR's classifier: is a line of text upright or upside down?

The network is from the package rapidocr (Apache licence). As many samples as wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from fastrun.benchmarks.accuracy.rendered import as_input, picture, random_text
from fastrun.benchmarks.accuracy.task import (
    CALIBRATION,
    TEST,
    Sample,
    Task,
    classified,
    draws,
    fix_shape,
)
from fastrun.graph.zoo.published import published

packages = ("rapidocr",)

HEIGHT, WIDTH = 48, 192  # pixels, as in its training

_CALIBRATION = 48  # strings


def load() -> Task:
    model = published("ppocr-angle")
    name = fix_shape(model, (1, 3, HEIGHT, WIDTH))

    def sample(kind: int, i: int) -> Sample:
        draw = draws(kind, i)
        line = picture(random_text(draw), draw)
        turned = int(draw.integers(2))
        x = as_input(line.rotate(180) if turned else line, HEIGHT, WIDTH, draw)
        return Sample({name: x}, classified(turned))

    def samples() -> Iterator[Sample]:
        return (sample(TEST, i) for i in count())

    calibration = [sample(CALIBRATION, i).inputs for i in range(_CALIBRATION)]
    return Task("angle", model, calibration, samples)
