"""Pictures as inputs of networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastrun.graph.core.errors import InputError
from fastrun.graph.core.sizes import Sizes, sizes_text

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


def read_picture(path: Path, sizes: Sizes | None, how: Preparation) -> NDArray[np.float32]:
    """The picture of a file that Pillow reads (PNG, JPEG, ...), as an array of these sizes.

    An open width or height follows from the other one and the picture's proportions. If both are
    open the picture keeps its size. It is not cropped then.

    Raises:
        InputError: the file is no picture, or the sizes are neither (1, 3, height, width) nor
            (1, 1, height, width), which is for shades of grey. The batch size may be open.
        OSError: there is no such file.
    """
    batch, channels, height, width = sizes if sizes and len(sizes) == 4 else (0, 0, 0, 0)
    if not (batch == 1 or isinstance(batch, str)) or channels not in _MODES:
        raise InputError(
            f"{path}: no picture is {sizes_text(sizes)}, only (1, 3, H, W) or (1, 1, H, W): "
            "pass an array"
        )
    if {len(how.mean), len(how.std)} - {1, channels}:
        raise InputError(f"the input has {channels} channels: give as many means and deviations")
    try:
        with Image.open(path) as file:
            whole = ImageOps.exif_transpose(file).convert(_MODES[channels])
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: no picture that can be read: {error}") from None
    if isinstance(height, int) and isinstance(width, int):
        part = _middle(whole, height, width, how.crop)
    else:
        part = whole.resize(_proportional(whole, height, width), Image.Resampling.BICUBIC)
    pixels = np.asarray(part, np.float32).reshape(part.height, part.width, channels)
    values = (pixels - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _proportional(whole: Image.Image, height: int | str, width: int | str) -> tuple[int, int]:
    """Width and height of a picture of which at most one is given."""
    if isinstance(height, int):
        return max(1, round(whole.width * height / whole.height)), height
    if isinstance(width, int):
        return width, max(1, round(whole.height * width / whole.width))
    return whole.size


def _middle(whole: Image.Image, height: int, width: int, share: float) -> Image.Image:
    """The centre of a picture in the proportion of the input; it keeps `share` of one side."""
    scale = min(whole.height / height, whole.width / width) * share
    left, top = (whole.width - width * scale) / 2, (whole.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return whole.resize((width, height), Image.Resampling.BICUBIC, box)
