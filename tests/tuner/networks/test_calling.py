"""Networks called with an array, shown in a notebook, and pickled for another process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import fastrun
from fastrun.graph.core.errors import InputError, ModelFileError
from tests.support.graph_models import model, node, normal

ROOT = Path(__file__).parents[3]
X = normal(1, 4, 8, 8)


def one_input() -> onnx.ModelProto:
    return model([node("Conv", "x w", "y")], {"w": normal(6, 4, 3, 3)})


def test_a_single_input_needs_no_name() -> None:
    network = fastrun.load(one_input(), policy="heuristic")
    by_name = network.run({"x": X})
    np.testing.assert_array_equal(network.run(X)["y"], by_name["y"])
    np.testing.assert_array_equal(network(X), by_name["y"])
    np.testing.assert_array_equal(network(memoryview(X)), by_name["y"])  # anything like an array


def test_of_several_inputs_each_is_named() -> None:
    m = model([node("Add", "x z", "y"), node("Relu", "y", "r")])
    m.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, (1, 4, 8, 8)))
    m.graph.output.append(onnx.helper.make_empty_tensor_value_info("r"))
    network = fastrun.load(m, policy="heuristic")
    with pytest.raises(InputError, match=r"has 2 inputs: give a dictionary .* x, z"):
        network(X)
    assert network({"x": X, "z": X}).keys() == {"y", "r"}


def test_a_network_of_any_size_is_called_alike() -> None:
    m = model([node("Conv", "x w", "y")], {"w": normal(6, 4, 3, 3)}, shape=(1, 4, "H", "W"))
    network = fastrun.load(m, policy="heuristic")
    assert network(X).shape == (1, 6, 6, 6)
    assert "1 of 16 shapes kept" in repr(network)


def test_files_without_a_name_are_called_as_the_file(tmp_path: Path) -> None:
    m = one_input()
    for inside, name in (("main_graph", "mine"), ("theirs", "theirs")):
        m.graph.name = inside
        onnx.save(m, tmp_path / "mine.onnx")
        network = fastrun.load(tmp_path / "mine.onnx", policy="heuristic")
        assert network.plan.network == name
        assert repr(network).startswith(f"<{name}: ")


def test_a_pickle_runs_in_another_process_without_the_file(tmp_path: Path) -> None:
    file, pickled = tmp_path / "net.onnx", tmp_path / "net.pickle"
    onnx.save(one_input(), file)
    network = fastrun.load(file, policy="heuristic")
    pickled.write_bytes(pickle.dumps({"network": network.clone(), "x": X}))
    file.unlink()
    code = (
        "import pickle, sys, numpy as np\n"
        "given = pickle.load(open(sys.argv[1], 'rb'))\n"
        "np.save(sys.argv[2], given['network'](given['x']))\n"
        "print(given['network'].plan.forms == pickle.loads(open(sys.argv[3], 'rb').read()))"
    )
    forms, result = tmp_path / "forms", tmp_path / "y.npy"
    forms.write_bytes(pickle.dumps(network.plan.forms))
    words = [sys.executable, "-c", code, *map(str, (pickled, result, forms))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True"], done.stderr
    np.testing.assert_array_equal(np.load(result), network(X))


def test_a_file_that_has_changed_is_not_pickled(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    onnx.save(one_input(), file)
    network = fastrun.load(file, policy="heuristic")
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ModelFileError, match="another file than the one that was loaded"):
        pickle.dumps(network)


def test_what_a_notebook_shows() -> None:
    network = fastrun.load(one_input(), policy="heuristic")
    text = network._repr_html_()
    assert "network small" in text
    assert "x 1x4x8x8" in text
    assert "MB" in network.memory._repr_html_()
