"""`fastrun quantise` and `fastrun.quantise` as a user calls them, and mistakes in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import fastrun
from fastrun.graph.core.errors import InputError
from fastrun.graph.frontend.importer import import_onnx
from fastrun.main import main
from fastrun.tuner.networks.calibration import calibration_data
from fastrun.tuner.networks.pictures import Preparation
from tests.support.graph_models import model, node, normal
from tests.support.peer import by_onnxruntime

Run = Callable[..., tuple[int, str, str]]
PLAIN = Preparation(1.0, (0.0,), (1.0,))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a classifier of pictures of 12x16, and pictures for it."""
    monkeypatch.chdir(tmp_path)
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Relu", "c", "r"),
        node("Conv", "r v", "d"),
        node("GlobalAveragePool", "d", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f fc", "y", transB=1),
    ]
    weights = {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 1, 1), "fc": normal(10, 8)}
    m = model(nodes, weights, shape=(1, 3, 12, 16))
    onnx.helper.set_model_props(m, {"labels": "cat dog"})
    onnx.save(m, "net.onnx")
    rng = np.random.default_rng(0)
    Path("pictures", "more").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "more/c.png"):
        pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(Path("pictures", name))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `fastrun quantise` in this process: exit code, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        try:
            code = main(["quantise", *words])
        except SystemExit as leaving:
            code = int(str(leaving.code or 0))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_folder_of_pictures(run: Run) -> None:
    code, out, err = run("net.onnx", "--calibrate", "pictures", "-o", "q.onnx", "--bits", "7")
    assert code == 0
    assert all(line.startswith("[") for line in err.splitlines())  # how far it is
    assert "3 of 3 layers in 8 bits, their weights of 7, calibrated with 3 inputs" in out
    assert "y: SQNR " in out
    written = onnx.load("q.onnx")
    assert [(p.key, p.value) for p in written.metadata_props] == [("labels", "cat dog")]
    assert sum(n.op_type == "QuantizeLinear" for n in written.graph.node) == 5
    x = {"x": normal(1, 3, 12, 16)}
    truth, found = by_onnxruntime(onnx.load("net.onnx"), x), by_onnxruntime(written, x)
    assert truth
    assert found
    assert np.abs(found["y"] - truth["y"]).max() < 0.2 * np.abs(truth["y"]).max()


def test_an_archive_and_what_stays_in_float32(run: Run) -> None:
    np.savez("data.npz", x=normal(5, 3, 12, 16))
    words = "net.onnx --calibrate data.npz -o q.onnx --samples 2 --keep d --rounding nearest"
    code, out, _ = run(*words.split(), "--range", "minmax")
    assert code == 0
    assert "2 of 3 layers in 8 bits, calibrated with 2 inputs" in out
    assert "in float32: d\n" in out


def test_layers_stay_in_float32_for_an_sqnr(run: Run) -> None:
    np.savez("data.npz", x=normal(5, 3, 12, 16))
    words = "net.onnx --calibrate data.npz -o q.onnx --min-sqnr"
    code, out, _ = run(*words.split(), "1")
    assert code == 0
    assert "3 of 3 layers in 8 bits" in out
    least = float(out.split("y: SQNR ")[1].split()[0])
    code, out, _ = run(*words.split(), f"{least + 1:.1f}")
    assert code == 0
    assert "in float32: " in out
    assert float(out.split("y: SQNR ")[1].split()[0]) > least + 0.9
    Path("q.onnx").unlink()
    code, _, err = run(*words.split(), "99")
    assert code == 2
    assert "an output has an SQNR of less than 99 dB on the calibration data" in err
    assert not Path("q.onnx").exists()


def test_in_python() -> None:
    m = onnx.load("net.onnx")
    done = fastrun.quantise(m, {"x": normal(4, 3, 12, 16)}, keep=("y",))
    assert list(done.layers) == ["c", "d"]
    assert list(done.kept) == ["y"]
    assert done.differences["y"].sqnr > 20
    assert done.graph.grids["x"].exact
    done.save("q.onnx")
    assert len(onnx.load("q.onnx").graph.node) == len(done.model.graph.node)
    with pytest.raises(ValueError, match="min_sqnr is no number"):
        fastrun.quantise(m, {"x": normal(1, 3, 12, 16)}, min_sqnr=float("nan"))
    with pytest.raises(ValueError, match="no bits 3: use one of 8, 7, 6, 5, 4"):
        fastrun.quantise(m, {"x": normal(1, 3, 12, 16)}, bits=3)


def test_sums_are_no_layers() -> None:
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b v", "c")]
    nodes += [node("MaxPool", "b", "m", kernel_shape=[1, 1]), node("Relu", "c", "d")]
    nodes += [node("Mul", "m d", "e"), node("Conv", "e v", "y")]
    weights = {"w": normal(8, 4, 1, 1), "v": normal(8, 8, 1, 1)}
    done = fastrun.quantise(model(nodes, weights), {"x": normal(4, 4, 8, 8)})
    assert "e" in done.graph.grids
    assert [name in ("e", "Mul.5") for name in done.layers] == [False] * 3


def test_filters_of_volumes_stay_in_float32_and_are_named() -> None:
    nodes = [node("Conv", "x w", "c"), node("Conv", "c v", "y", group=8)]
    weights = {"w": normal(8, 4, 1, 1, 1), "v": normal(8, 1, 3, 3, 3)}
    m = model(nodes, weights, shape=(1, 4, 5, 5, 5))
    done = fastrun.quantise(m, {"x": normal(4, 4, 5, 5, 5)})
    assert len(done.layers) == 1
    assert list(done.kept) == ["y"]


def test_batches_of_samples() -> None:
    """A fixed batch of 2 takes two samples at a time; the last batch is filled up."""
    graph = import_onnx(model([node("Relu", "x", "y")], shape=(2, 3, 4, 4)))
    Path("arrays").mkdir()
    np.save("arrays/a.npy", np.arange(48, dtype=np.float64).reshape(1, 3, 4, 4))
    np.savez("arrays/b.npz", x=np.full((2, 3, 4, 4), 7, np.uint8))
    Image.new("RGB", (4, 4), (1, 2, 3)).save("arrays/c.png")
    first, second = calibration_data(graph, "arrays", PLAIN, 100)
    assert first["x"].dtype == np.float32
    np.testing.assert_array_equal(first["x"][0].ravel(), np.arange(48))
    assert (first["x"][1] == 7).all()
    assert (second["x"][0] == 7).all()
    np.testing.assert_array_equal(second["x"][1, :, 0, 0], [1, 2, 3])
    [one] = calibration_data(graph, {"x": normal(1, 3, 4, 4)}, PLAIN, 100)
    np.testing.assert_array_equal(one["x"][0], one["x"][1])
    spread = calibration_data(graph, {"x": normal(90, 3, 4, 4)}, PLAIN, 6)
    assert len(spread) == 3


def test_indices_are_calibrated_with_as_integers() -> None:
    nodes = [node("Gather", "table x", "rows"), node("MatMul", "rows w", "y")]
    constants = {"table": normal(9, 16), "w": normal(16, 8)}
    m = model(nodes, constants, shape=(1, 4), dtype=onnx.TensorProto.INT64)
    found = np.random.default_rng(0).integers(0, 9, (6, 4))
    done = fastrun.quantise(m, {"x": found.astype(np.int32)})
    assert len(done.layers) == 1
    assert done.differences["y"].sqnr > 20
    with pytest.raises(InputError, match=r"array for 'x' has the type float64: give int64"):
        fastrun.quantise(m, {"x": found.astype(np.float64)})
    with pytest.raises(InputError, match=r"has the index 99: .* has entries from -9 to 8"):
        fastrun.quantise(m, {"x": np.full((1, 4), 99)})


def broken_archive() -> None:
    Path("d.npz").write_bytes(b"PK nothing")


def strange_file() -> None:
    Path("pictures/readme.txt").write_text("These are pictures.\n")


def pictures_of_many_channels() -> None:
    onnx.save(model([node("Conv", "x w", "y")], {"w": normal(4, 4, 1, 1)}), "net.onnx")


MISTAKES = (
    ("nowhere", None, "nowhere: there is no such folder or file"),
    ("empty", lambda: Path("empty").mkdir(), "empty: there are no calibration data"),
    ("net.onnx", None, "net.onnx: calibration data are a folder, or a file of arrays (.npz)"),
    ("d.npz", broken_archive, "d.npz: not an archive of arrays"),
    ("d.npz", lambda: np.savez("d.npz", y=normal(1, 3, 12, 16)), "no input 'y': the inputs are x"),
    ("d.npz", lambda: np.savez("d.npz", x=normal(3, 12, 16)), "(3, 12, 16): give Nx3x12x16"),
    ("d.npz", lambda: np.savez("d.npz", x=normal(0, 3, 12, 16)), "'x' has no samples"),
    ("d.npz", lambda: np.savez("d.npz", x=np.full((1, 3, 12, 16), np.nan)), "not finite"),
    ("d.npz", lambda: np.savez("d.npz", x=np.full((1, 3, 12, 16), "a")), "has the type <U1"),
    ("d.npz", lambda: np.savez("d.npz"), "nothing for input 'x'"),
    ("pictures", strange_file, "pictures/readme.txt: no picture that can be read"),
    ("pictures", pictures_of_many_channels, "no picture is (1, 4, 8, 8)"),
)


@pytest.mark.parametrize(("data", "prepare", "message"), MISTAKES)
def test_wrong_data_are_a_line(
    data: str, prepare: Callable[[], None] | None, message: str, run: Run
) -> None:
    if prepare:
        prepare()
    code, out, err = run("net.onnx", "--calibrate", data, "-o", "q.onnx")
    assert (code, out) == (2, "")
    assert err.startswith("fastrun: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not Path("q.onnx").exists()


def test_two_inputs_need_archives() -> None:
    m = model([node("Add", "x z", "y")])
    z = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, (1, 4, 8, 8))
    m.graph.input.append(z)
    graph = import_onnx(m)
    with pytest.raises(InputError, match=r"has the inputs x, z: give their arrays together"):
        calibration_data(graph, "pictures", PLAIN, 8)
    with pytest.raises(InputError, match="different numbers of samples: 2 for 'x', 1 for 'z'"):
        calibration_data(graph, {"x": normal(2, 4, 8, 8), "z": normal(1, 4, 8, 8)}, PLAIN, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-o q.txt", "must end in .onnx"),
        ("-o nowhere/q.onnx", "there is no folder 'nowhere'"),
        ("-o net.onnx", "this is the model itself"),
        ("-o q.onnx --bits 9", "invalid choice"),
        ("-o q.onnx --keep e", "no node 'e' to keep in float32"),
        ("-o q.onnx --min-sqnr much", "'much' is no number of decibels"),
        ("-o q.onnx --min-sqnr nan", "'nan' is no number of decibels"),
    ],
)
def test_wrong_options_are_a_line(words: str, message: str, run: Run) -> None:
    code, _, err = run("net.onnx", "--calibrate", "pictures", *words.split())
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_network_without_layers_is_a_line(run: Run) -> None:
    onnx.save(model([node("Relu", "x", "y")], shape=(1, 3, 12, 16)), "relu.onnx")
    code, _, err = run("relu.onnx", "--calibrate", "pictures", "-o", "q.onnx")
    assert code == 2
    assert "has no convolution or dense layer with constant weights to quantise\n" in err
