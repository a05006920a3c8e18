"""Reading: PP-OCRv6's recogniser on rendered random strings. An answer is right if exact.

The network is from the package rapidocr (Apache licence). As many samples as wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, groupby

import numpy as np
import onnx

from fastrun.benchmarks.accuracy.rendered import as_input, picture, random_text
from fastrun.benchmarks.accuracy.task import (
    CALIBRATION,
    TEST,
    Sample,
    Task,
    draws,
    fix_shape,
)
from fastrun.benchmarks.peers import Array
from fastrun.graph.zoo.published import published

packages = ("rapidocr",)

HEIGHT, WIDTH = 48, 320  # pixels, as in its training

_BLANK = 0  # the class of "no character"
_CALIBRATION = 48  # strings


def load() -> Task:
    model = published("ppocr-recogniser")
    name = fix_shape(model, (1, 3, HEIGHT, WIDTH))
    characters = _characters(model)

    def sample(kind: int, i: int) -> Sample:
        draw = draws(kind, i)
        text = random_text(draw)
        x = as_input(picture(text, draw), HEIGHT, WIDTH, draw)
        return Sample({name: x}, lambda outputs: decoded(outputs[0], characters) == text)

    def samples() -> Iterator[Sample]:
        return (sample(TEST, i) for i in count())

    calibration = [sample(CALIBRATION, i).inputs for i in range(_CALIBRATION)]
    return Task("ocr", model, calibration, samples)


def decoded(scores: Array, characters: Sequence[str]) -> str:
    """The text of scores (1, position, class): repetitions count once, blanks not at all."""
    best = (int(k) for k, _ in groupby(np.argmax(scores[0], axis=-1)))
    return "".join(characters[k] for k in best if k != _BLANK)


def _characters(model: onnx.ModelProto) -> list[str]:
    """The character of each class; the model has a list of them with neither blank nor space."""
    [text] = [entry.value for entry in model.metadata_props if entry.key == "character"]
    return ["", *text.splitlines(), " "]
