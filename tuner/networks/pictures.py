"""Pictures as inputs of networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastrun.graph.core.errors import InputError

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preparation:
    """The preparation of a picture.

    The picture is resized (bicubic) so that it covers the input, and cropped to the centre. `crop`
    is the part of the width and height that the crop keeps. Every value v of 0..255 becomes
    `(v - mean) / std`, with one number for all channels or one for each. The defaults are those of
    most networks trained on ImageNet.
    """

    crop: float = 0.875
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)


def read_picture(path: Path, shape: Sequence[int], how: Preparation) -> NDArray[np.float32]:
    """The picture of a file that Pillow reads (PNG, JPEG, ...), as an array of `shape`.

    Raises:
        InputError: the file is no picture, or the shape is neither (1, 3, height, width) nor
            (1, 1, height, width), which is for shades of grey.
        OSError: there is no such file.
    """
    if len(shape) != 4 or shape[0] != 1 or shape[1] not in _MODES:
        sizes = "x".join(map(str, shape))
        raise InputError(f"{path}: no picture is {sizes}, only 1x3xHxW or 1x1xHxW: pass an array")
    channels, height, width = shape[1:]
    if {len(how.mean), len(how.std)} - {1, channels}:
        raise InputError(f"the input has {channels} channels: give as many means and deviations")
    try:
        with Image.open(path) as file:
            whole = ImageOps.exif_transpose(file).convert(_MODES[channels])
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: no picture that can be read: {error}") from None
    part = _middle(whole, height, width, how.crop)
    pixels = np.asarray(part, np.float32).reshape(height, width, channels)
    values = (pixels - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _middle(whole: Image.Image, height: int, width: int, share: float) -> Image.Image:
    """The centre of a picture in the proportion of the input; it keeps `share` of one side."""
    scale = min(whole.height / height, whole.width / width) * share
    left, top = (whole.width - width * scale) / 2, (whole.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return whole.resize((width, height), Image.Resampling.BICUBIC, box)
