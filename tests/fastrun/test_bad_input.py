"""What is wrong with a model or its inputs is said in a line, before native code runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choose, heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.main import main
from tests.graph.test_networks_run import conv, only, weights
from tests.support.agreement import assert_close
from tests.support.graph_models import model, node, normal

CPU = Cpu.host()


def saved(folder: Path, m: onnx.ModelProto) -> Path:
    onnx.save(m, folder / "net.onnx")
    return folder / "net.onnx"


def simple() -> onnx.ModelProto:
    return model([conv("x", "y", "w")], {"w": weights(8, 4, 1)})


def without_weights(folder: Path) -> Path:
    return saved(folder, model([conv("x", "y", "w")]))


def cyclic(folder: Path) -> Path:
    nodes = [node("Add", "x b", "a"), node("Relu", "a", "b"), node("Neg", "b", "y")]
    return saved(folder, model(nodes))


def truncated(folder: Path) -> Path:
    path = saved(folder, simple())
    os.truncate(path, path.stat().st_size // 2)
    return path


def text(folder: Path) -> Path:
    (folder / "net.onnx").write_text("This is not a model.\n")
    return folder / "net.onnx"


def without_external_data(folder: Path) -> Path:
    path = folder / "net.onnx"
    onnx.save(simple(), path, save_as_external_data=True, location="data", size_threshold=0)
    (folder / "data").unlink()
    return path


def with_short_external_data(folder: Path) -> Path:
    path = folder / "net.onnx"
    onnx.save(simple(), path, save_as_external_data=True, location="data", size_threshold=0)
    os.truncate(folder / "data", 9)
    return path


def too_large(folder: Path) -> Path:
    path = saved(folder, simple())
    os.truncate(path, 2**31)
    return path


def unsupported(folder: Path) -> Path:
    return saved(folder, model([node("Bernoulli", "x", "y")]))


def open_size(folder: Path) -> Path:
    return saved(folder, model([node("Relu", "x", "y")], shape=(1, 3, "height", 8)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without_weights, "needs 'w', which the model does not contain"),
        (cyclic, "depends on itself"),
        (truncated, "not an ONNX model, or cut short"),
        (text, "not an ONNX model"),
        (without_external_data, "/data"),
        (with_short_external_data, "external weights are unusable"),
        (too_large, "larger than the 2 GB"),
        (unsupported, "'y' (Bernoulli) needs an operator that is not supported"),
        (open_size, "'x' has shape (1, 4, 8, 8) instead of (1, 3, height, 8)"),
    ],
)
def test_bad_models_take_one_line(
    bad: Callable[[Path], Path], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", normal(1, 4, 8, 8))
    words = ["--input", str(tmp_path / "x.npy"), "--policy", "heuristic"]
    assert main(["run", str(bad(tmp_path)), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastrun: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_what_cannot_run_as_a_whole_is_said_before_tuning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [conv("x", "c", "w"), node("Bernoulli", "c", "y")]
    path = saved(tmp_path, model(nodes, {"w": weights(8, 4, 1)}))
    assert main(["tune", str(path), "--trials", "1", "--db", str(tmp_path / "x.db")]) == 0
    *lines, last, _ = capsys.readouterr().out.splitlines()
    said = next(n for n, line in enumerate(lines) if "(Bernoulli) needs an operator" in line)
    assert lines[said].startswith(f"only the convolutions of {path} are tuned: ")
    assert all("best" not in line for line in lines[:said])
    assert f"`fastrun best {path} --db " in last


def passing() -> onnx.ModelProto:
    """Convolutions of three kinds with activations, a residual, a pool, softmax, a dense layer."""
    nodes = [
        conv("x", "a", "w1"),
        node("Relu", "a", "b"),
        conv("b", "c", "dw", 1, group=16),
        node("Clip", "c zero six", "d"),
        conv("d", "e", "w3", 1),
        node("Add", "e b", "f"),
        node("HardSwish", "f", "g"),
        node("AveragePool", "g", "h", kernel_shape=[2, 2], strides=[2, 2]),
        node("Sigmoid", "h", "i"),
        node("Mul", "h i", "y"),
        node("Flatten", "h", "j"),
        node("Gemm", "j fc", "k"),
        node("Softmax", "k", "z", axis=1),
    ]
    constants = {
        "w1": weights(16, 4, 1), "dw": weights(16, 1, 3), "w3": weights(16, 16, 3),
        "fc": normal(256, 7), "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    proto = model(nodes, constants)
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("z"))
    return proto


def ran(proto: onnx.ModelProto, choose: Choose, x: np.ndarray) -> dict[str, np.ndarray]:
    plan, arrangement = make_plan(optimise(load_network(proto)), choose, CPU)
    return Executable.of(arrangement, CPU, 1, plan).run({"x": x})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCHW8c"])
def test_what_is_not_finite_passes_through_as_ieee_says(layout: str, value: float) -> None:
    x = normal(1, 4, 8, 8)
    x[0, 1, 5, 6] = value
    found = ran(passing(), only("NCHW", layout), x)
    with np.errstate(all="ignore"):
        truth = reference.run(load_network(passing()), {"x": x})
    assert not np.isfinite(truth["y"]).all()
    for name, expected in truth.items():
        assert_close(found[name], expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_winograd_spreads_what_is_not_finite_over_a_tile(value: float) -> None:
    """But hides none of it."""
    proto = model([conv("x", "y", "w", 1)], {"w": weights(32, 32, 3)}, shape=(1, 32, 28, 28))
    x = normal(1, 32, 28, 28)
    x[0, 3, 5, 6] = value
    plan, _ = make_plan(optimise(load_network(proto)), heuristic_choices(CPU), CPU)
    if not next(iter(plan.forms.values())).algorithm.startswith("winograd"):
        pytest.skip("the heuristic prefers another algorithm here")
    y = ran(proto, heuristic_choices(CPU), x)["y"]
    assert not np.isfinite(y[0, :, 4:7, 5:8]).any()
    assert np.isfinite(y[0, :, 14:, 14:]).all()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCHW8c"])
def test_a_maximum_is_of_the_window_or_not_a_number(layout: str) -> None:
    """Where only some values are NaN either may come out; where all are, nothing else."""
    proto = model([conv("x", "a", "w"), node("MaxPool", "a", "y", kernel_shape=[2, 2])],
                  {"w": np.eye(4, dtype=np.float32)[..., None, None]})  # fmt: skip
    x = normal(1, 4, 8, 8)
    x[0, :, 2:5, 2:5] = np.nan
    y = ran(proto, only("NCHW", layout), x)["y"]
    assert np.isnan(y[0, :, 2:4, 2:4]).all()
    windows = np.stack([x[0, :, i : 7 + i, j : 7 + j] for i in (0, 1) for j in (0, 1)])
    assert ((y[0] == windows).any(0) | np.isnan(y[0])).all()
