"""Weights in files beside the model: found through links, refused where they do not fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastrun.graph.core.errors import ModelFileError
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.reference.interpreter import run
from tests.support.graph_models import model, node, normal

W = normal(6, 4, 1, 1)


def saved(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    m = model([node("Conv", "x w", "c"), node("Add", "c b", "y")], {"w": W, "b": normal(6, 1, 1)})
    onnx.save(m, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def weights(path: Path) -> np.ndarray:
    return import_onnx(path).constants["w"]


def hub(folder: Path) -> Path:
    """Both files are links into a store, as in the cache of Hugging Face's hub."""
    path, snapshot = saved(folder / "blobs"), folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("m.onnx", "m.data"):
        path.with_name(name).rename(folder / "blobs" / f"sha-{name[2:]}")
        (snapshot / name).symlink_to(f"../../blobs/sha-{name[2:]}")
    return snapshot / "m.onnx"


def hard_links(folder: Path) -> Path:
    path = saved(folder)
    for name in ("m.onnx", "m.data"):
        os.link(path.with_name(name), path.with_name(f"other-{name}"))
    return path


def linked_folder(folder: Path) -> Path:
    saved(folder / "real")
    (folder / "link").symlink_to("real")
    return folder / "link" / "m.onnx"


@pytest.mark.parametrize("make", [saved, hub, hard_links, linked_folder])
def test_links_are_followed(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    np.testing.assert_array_equal(weights(path), W)
    graph = import_onnx(path)
    assert run(graph, {"x": normal(1, 4, 8, 8)})["y"].shape == (1, 6, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "../m.data"}, "not a file in the folder"),
        ({"location": "sub/../../m.data"}, "not a file in the folder"),
        ({"location": "/etc/passwd"}, "not a file in the folder"),
        ({"location": ""}, "not a file in the folder"),
        ({"location": "\0"}, "not a file in the folder"),
        ({"location": "n" * 5000}, "too long"),
        ({"location": "no.data"}, "is missing: .*no.data"),
        ({"location": "."}, "not a file in the folder"),
        ({"location": "folder"}, "is not a file"),
        ({"location": "pipe"}, "is not a file"),
        ({"offset": "100000"}, "too short"),
        ({"offset": "-4"}, "are not 96 at -4"),
        ({"offset": "9" * 5000}, "Exceeds the limit"),
        ({"offset": "x"}, "invalid literal"),
        ({"length": "95"}, "its 96 bytes are not 95"),
        ({"length": "-96"}, "are not -96"),
    ],
)
def test_what_does_not_fit_is_one_line(
    changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    m = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry for entry in m.graph.initializer[0].external_data}
    for key, value in changes.items():
        entries[key].value = value
    path.write_bytes(m.SerializeToString())
    with pytest.raises(ModelFileError, match=message) as caught:
        import_onnx(path)
    assert "\n" not in str(caught.value)


def test_shapes_larger_than_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for dims in ([2**40, 1, 1, 1], [-6, 4, 1, 1], [2**62, 2**62, 1, 1]):
        m = onnx.load(path, load_external_data=False)
        m.graph.initializer[0].dims[:] = dims
        (tmp_path / "other.onnx").write_bytes(m.SerializeToString())
        with pytest.raises(ModelFileError, match="unusable"):
            import_onnx(tmp_path / "other.onnx")


def test_a_length_may_be_left_out_and_a_key_unknown(tmp_path: Path) -> None:
    path = saved(tmp_path)
    m = onnx.load(path, load_external_data=False)
    for tensor in m.graph.initializer:
        kept = [entry for entry in tensor.external_data if entry.key != "length"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
        tensor.external_data.add(key="checksum", value="1234")
    path.write_bytes(m.SerializeToString())
    np.testing.assert_array_equal(weights(path), W)


def test_a_model_loaded_without_its_weights(tmp_path: Path) -> None:
    m = onnx.load(saved(tmp_path), load_external_data=False)
    with pytest.raises(ModelFileError, match="'w' are in another file: give the path"):
        import_onnx(m)
