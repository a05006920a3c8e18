"""Lines of text as pictures: random strings, so that what they say is known.

Fonts, sizes, shades, blur, rotation and noise are random. The fonts are matplotlib's DejaVu.
"""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fastrun.benchmarks.peers import Array

ALPHABET = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Letters and digits without those that look alike: l, I, O, 0, 1."""

_LENGTHS = (4, 14)
_SIZES = (18, 30)  # pixels
_MARGIN = 8  # pixels
_ROTATION = 2.0  # degrees, at most
_BLUR = 1.0  # pixels, at most
_NOISE = 10.0  # standard deviation, of 255


def random_text(draw: np.random.Generator) -> str:
    """A string of 4 to 14 characters of `ALPHABET`."""
    letters = draw.choice(list(ALPHABET), draw.integers(*_LENGTHS, endpoint=True))
    return "".join(letters)


def picture(text: str, draw: np.random.Generator) -> Image.Image:
    """Dark text on a light ground, slightly rotated and blurred."""
    font = ImageFont.truetype(draw.choice(_fonts()), int(draw.integers(*_SIZES, endpoint=True)))
    ground, ink = int(draw.integers(150, 255)), int(draw.integers(0, 90))
    _, _, right, bottom = font.getbbox(text)
    size = int(right) + 2 * _MARGIN, int(bottom) + 2 * _MARGIN
    whole = Image.new("L", size, ground)
    ImageDraw.Draw(whole).text((_MARGIN, _MARGIN), text, ink, font)
    angle = draw.uniform(-_ROTATION, _ROTATION)
    turned = whole.rotate(angle, Image.Resampling.BILINEAR, fillcolor=ground)
    return turned.filter(ImageFilter.GaussianBlur(draw.uniform(0, _BLUR)))


def as_input(line: Image.Image, height: int, width: int, draw: np.random.Generator) -> Array:
    """The input 1x3xHxW of PP-OCR's networks: values of -1 to 1, noise, zeros on the right.

    A picture that is too wide is narrowed.
    """
    used = min(width, round(line.width * height / line.height))
    pixels = np.asarray(line.resize((used, height), Image.Resampling.BILINEAR), np.float32)
    noisy = pixels + draw.normal(0, _NOISE, (3, height, used))
    found = np.zeros((1, 3, height, width), np.float32)
    found[0, :, :, :used] = noisy / 127.5 - 1
    return found


@functools.cache
def _fonts() -> list[str]:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return sorted(str(f) for f in folder.glob("DejaVu*.ttf") if "Display" not in f.name)
