"""`fastrun plan`, `run`, `show`, `export` of networks: what they print and write, mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from fastrun.graph.core.errors import InputError
from fastrun.graph.networks import load_network
from fastrun.graph.reference import interpreter as reference
from fastrun.main import main
from fastrun.tuner.networks.load import load
from fastrun.tuner.networks.pictures import Preparation, read_picture
from tests.support.commands import fresh_cache, short_finals
from tests.support.execution import relative_error
from tests.support.graph_models import batch_norm, model, node, normal
from tests.support.quantised_models import layer

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str, str]]
PLAIN = Preparation(1.0, (0.0,), (1.0,))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_cache(tmp_path / "cache", monkeypatch)
    short_finals(monkeypatch)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, standard output, standard error."""

    def call(*words: str | Path) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as leaving:
            code = int(str(leaving.code or 0))
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Ten classes, from pictures of 12 x 16."""
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("BatchNormalization", "c scale shift mean variance", "n"),
        node("Relu", "n", "r"),
        node("Dropout", "r", "d"),
        node("GlobalAveragePool", "d", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f fc", "y", transB=1),
    ]
    weights = {"w": normal(8, 3, 3, 3), **batch_norm(8), "fc": normal(10, 8)}
    onnx.save(model(nodes, weights, shape=(1, 3, 12, 16)), tmp_path / "classifier.onnx")
    return tmp_path / "classifier.onnx"


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Two inputs, two outputs."""
    m = model([node("Add", "x z", "y"), node("Sub", "x z", "d")], shape=(2, 3))
    m.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, (2, 3)))
    m.graph.output.append(onnx.helper.make_empty_tensor_value_info("d"))
    onnx.save(m, tmp_path / "pair.onnx")
    return tmp_path / "pair.onnx"


def test_plan_prints_every_step_and_saves(run: Run, classifier: Path, tmp_path: Path) -> None:
    code, out, err = run("plan", classifier, "--save", tmp_path / "net.plan")
    assert code == 0
    assert "running by heuristics" in err
    for words in (r"c +Conv \+ relu +\w+\(layout=", r"y +Gemm +dense ", "ms expected", "weights"):
        assert re.search(words, out), words
    code, again, err = run("plan", classifier, "--plan", tmp_path / "net.plan", "--json")
    assert (code, err) == (0, "")
    document = json.loads(again)
    algorithms = {step["name"]: step["algorithm"] for step in document["steps"]}
    assert algorithms["c"] in out
    assert document["inputs"] == {"x": [1, 3, 12, 16]}
    assert document["measured"] > 0
    assert sum(step["share"] for step in document["steps"]) == pytest.approx(1)


def test_plan_for_another_shape(run: Run, classifier: Path) -> None:
    code, out, _ = run("plan", classifier, "--shape", "x=2x3x20x24", "--json")
    assert code == 0
    assert json.loads(out)["outputs"] == {"y": [2, 10]}


def test_run_computes_what_the_interpreter_does(run: Run, classifier: Path, tmp_path: Path) -> None:
    x = normal(1, 3, 12, 16)
    np.save(tmp_path / "x.npy", x)
    code, out, _ = run(
        "run", classifier, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--top", 3
    )
    assert code == 0
    truth = reference.run(load_network(classifier), {"x": x})["y"]
    assert relative_error(np.load(tmp_path / "y.npy"), truth) < 1e-4
    assert re.search(r"y: 1x10, float32", out)
    best = [int(row.split()[0]) for row in out.splitlines()[-3:]]
    assert best == np.argsort(-truth[0])[:3].tolist()
    probability = float(out.splitlines()[-3].split()[2])
    assert probability == pytest.approx(np.exp(truth.max()) / np.exp(truth).sum(), rel=1e-2)


def test_run_with_several_inputs_and_outputs(run: Run, pair: Path, tmp_path: Path) -> None:
    x, z = normal(2, 3), normal(2, 3, seed=1)
    np.save(tmp_path / "a=b.npy", x)
    np.save(tmp_path / "z.npy", z)
    np.savez(tmp_path / "both.npz", x=x, z=z)
    each = ["--input", f"x={tmp_path}/a=b.npy", "--input", f"z={tmp_path}/z.npy"]
    for given in (each, ["--input", tmp_path / "both.npz"]):
        code, out, _ = run("run", pair, *given, "--output", tmp_path / "out.npz")
        assert code == 0
        assert "class" not in out
        with np.load(tmp_path / "out.npz") as found:
            assert np.array_equal(found["y"], x + z)
            assert np.array_equal(found["d"], x - z)


def test_run_follows_a_plan(run: Run, classifier: Path, tmp_path: Path) -> None:
    load(classifier, policy="heuristic").plan.save(tmp_path / "net.plan")
    np.save(tmp_path / "x.npy", normal(1, 3, 12, 16))
    code, _, err = run(
        "run", classifier, "--plan", tmp_path / "net.plan", "--input", tmp_path / "x.npy"
    )
    assert (code, err) == (0, "")


def test_run_takes_pictures(run: Run, classifier: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (30, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    options = ["--crop", "0.9", "--mean", "127", "--std", "120,127,134"]
    code, _, _ = run(
        "run", classifier, "--input", tmp_path / "noise.png", "--output", tmp_path / "y.npy",
        *options,
    )  # fmt: skip
    assert code == 0
    how = Preparation(0.9, (127.0,), (120.0, 127.0, 134.0))
    x = read_picture(tmp_path / "noise.png", (1, 3, 12, 16), how)
    truth = reference.run(load_network(classifier), {"x": x})["y"]
    assert relative_error(np.load(tmp_path / "y.npy"), truth) < 1e-4


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_a_plain_picture_stays_plain(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"plain.{ending}"
    Image.new("RGB", (90, 60), (60, 120, 180)).save(path, quality=100)
    found = read_picture(path, (1, 3, 8, 8), Preparation(0.875, (10.0, 20.0, 30.0), (2.0,)))
    assert found.dtype == np.float32
    assert found.shape == (1, 3, 8, 8)
    for channel, value in enumerate([25.0, 50.0, 75.0]):
        np.testing.assert_allclose(found[0, channel], value, atol=1.0)


def test_the_middle_is_kept_in_proportion(tmp_path: Path) -> None:
    """As if it were scaled as a whole and then cut; a wide picture loses its ends."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300), np.uint8))
    noise.save(tmp_path / "noise.png")
    found = read_picture(
        tmp_path / "noise.png", (1, 1, 224, 224), Preparation(0.875, (0.0,), (1.0,))
    )
    whole = noise.resize((384, 256), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(found[0, 0], np.asarray(whole.crop((80, 16, 304, 240))), atol=1)
    wide = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 10)[None].repeat(50, 0)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = read_picture(tmp_path / "wide.png", (1, 1, 50, 50), PLAIN)
    assert np.array_equal(found[0, 0], wide[:, 100:150])


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        (("N", 3, "H", "W"), (1, 3, 30, 100)),
        ((1, 3, 12, "W"), (1, 3, 12, 40)),
        ((1, 3, "H", 50), (1, 3, 15, 50)),
    ],
)
def test_open_sizes_of_a_picture_follow_from_its_own(
    sizes: tuple[int | str, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    Image.new("RGB", (100, 30), (10, 20, 30)).save(tmp_path / "x.png")
    found = read_picture(tmp_path / "x.png", sizes, PLAIN)
    assert found.shape == shape
    assert found[0, :, 5, 5].tolist() == [10, 20, 30]


def test_pictures_stand_upright_and_opaque(tmp_path: Path) -> None:
    turned = Image.new("L", (8, 8))
    turned.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "turned.png", exif=exif)
    found = read_picture(tmp_path / "turned.png", (1, 1, 8, 8), PLAIN)
    assert found[0, 0, :4].max() == 0
    assert found[0, 0, 4:].min() == 255
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    found = read_picture(tmp_path / "clear.png", (1, 3, 8, 8), PLAIN)
    assert found[0, :, 0, 0].tolist() == [1, 2, 3]


def test_a_cut_picture_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    for ending in ("png", "jpg"):
        path = tmp_path / f"cut.{ending}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(InputError, match=rf"cut\.{ending}: no picture"):
            read_picture(path, (1, 3, 8, 8), PLAIN)


def test_show_says_what_each_pass_did(run: Run, classifier: Path) -> None:
    code, out, _ = run("show", classifier)
    assert code == 0
    for words in (
        r"small: 7 nodes",
        r"as imported +7 ",
        r"drop_identities +6 +1 Identity",
        r"normalise_affine +6 +1 BatchNorm +1 Affine",
        r"fold_affine +5 +1 Affine",
        r"fuse_activation +4 +1 Conv, 1 relu +1 Conv \+ relu",
        r"small: 4 nodes",
        r"conv 1x3x12x16 8x3x3 s1 p1 bias relu +1 ",
        r"1 convolution, 1 distinct",
    ):
        assert re.search(words, out), words


def test_show_of_a_network_without_convolutions(run: Run, pair: Path) -> None:
    code, out, _ = run("show", pair)
    assert code == 0
    assert out.endswith("has no convolutions and no attention, so there is nothing to tune\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "{classifier}"], "--input"),
        (["run", "{classifier}", "--input", "{0}/none.npy"], "none.npy: No such file"),
        (["run", "{classifier}", "--input", "{0}/none.png"], "none.png: No such file"),
        (["run", "{classifier}", "--input", "{0}/text.npy"], "text.npy: not an array"),
        (["run", "{classifier}", "--input", "{0}/text.npz"], "text.npz: not an archive"),
        (["run", "{classifier}", "--input", "{0}/text.png"], "text.png: no picture"),
        (["run", "{classifier}", "--input", "{0}/small.npy"], "(2, 3) instead of (1, 3, 12, 16)"),
        (["run", "{classifier}", "--input", "{0}/double.npy"], "float64: give it as float32"),
        (["run", "{classifier}", "--input", "w={0}/small.npy"], "no input 'w'"),
        (["run", "{classifier}", "--input", "{0}/other.npz"], "no input 'w'"),
        (["run", "{pair}", "--input", "{0}/small.npy"], "name the input, as in NAME="),
        (["run", "{pair}", "--input", "x={0}/small.npy"], "input 'z' is missing"),
        (["run", "{pair}", "--input", "x={0}/dot.png"], "no picture is (2, 3)"),
        (["run", "{pair}", "--input", "{0}/good.npz", "--output", "{0}/y.npy"], "2 outputs"),
        (["run", "{pair}", "--input", "{0}/good.npz", "--output", "{0}/y.txt"], "no format"),
        (
            ["run", "{pair}", "--input", "{0}/good.npz", "--output", "{0}/no/y.npz"],
            "there is no folder",
        ),
        (["run", "{classifier}", "--input", "{0}/dot.png", "--mean", "1,2"], "3 channels: give"),
        (["run", "{classifier}", "--input", "{0}/dot.png", "--mean", "x"], "not a number"),
        (["run", "{classifier}", "--input", "{0}/dot.png", "--crop", "2"], "at most 1"),
        (["run", "{classifier}", "--input", "{0}/dot.png", "--plan", "{0}/none"], "the plan"),
        (["run", "{classifier}", "--input", "{0}/dot.png", "--plan", "{0}/text.npy"], "no plan"),
        (["plan", "{classifier}", "--shape", "x=1x3"], "'c' (Conv)"),
        (["plan", "{classifier}", "--shape", "z=1x3"], "no input 'z'"),
        (["plan", "{classifier}", "--shape", "1x3"], "not like NAME="),
        (["plan", "{classifier}", "--save", "{0}/no/plan"], "there is no folder"),
        (["plan", "resnet81"], "did you mean"),
    ],
)
def test_mistakes_take_one_line(
    run: Run, classifier: Path, pair: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    small = normal(2, 3)
    np.save(tmp_path / "small.npy", small)
    np.save(tmp_path / "double.npy", np.zeros((1, 3, 12, 16)))
    np.savez(tmp_path / "good.npz", x=small, z=small)
    np.savez(tmp_path / "other.npz", x=np.zeros((1, 3, 12, 16), np.float32), w=small)
    Image.new("RGB", (20, 20)).save(tmp_path / "dot.png")
    for ending in ("npy", "npz", "png"):
        (tmp_path / f"text.{ending}").write_text("not what its name says")
    names = {"classifier": classifier, "pair": pair}
    code, _, err = run(*(word.format(tmp_path, **names) for word in words))
    assert code == 2
    mistake = err.splitlines()[-1]
    assert mistake.startswith("fastrun: error: ")
    assert message in mistake


def test_running_a_plan_takes_no_search_and_no_sql(classifier: Path, tmp_path: Path) -> None:
    load(classifier, policy="heuristic").plan.save(tmp_path / "net.plan")
    np.save(tmp_path / "x.npy", normal(1, 3, 12, 16))
    words = ["run", str(classifier), "--plan", str(tmp_path / "net.plan")]
    code = (
        "import sys; from fastrun.main import main\n"
        f"assert main({[*words, '--input', str(tmp_path / 'x.npy')]!r}) == 0\n"
        "heavy = {'optuna', 'pandas', 'matplotlib', 'sqlalchemy', 'jinja2', 'PIL', 'benchmarks'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_show_says_which_layers_stay_in_float32(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    wide = {"w": np.full((5, 4, 3, 3), 999, np.int16), "wz": np.zeros(5, np.int16)}
    path.write_bytes(layer(**wide).SerializeToString())
    code, out, _ = run("show", path)
    assert code == 0
    assert "quantised: 2 tensors and 0 weights in 8 bits" in out
    assert out.count("node 'conv' (Conv) runs in float32: its weights are int16") == 1


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """A network of open sizes that is computed by a convolution."""
    nodes = [node("Conv", "x w", "c", kernel_shape=[3, 3], strides=[2, 2]), node("Relu", "c", "y")]
    path = tmp_path / "detector.onnx"
    onnx.save(model(nodes, {"w": normal(8, 3, 3, 3)}, shape=("N", 3, "H", "W")), path)
    return path


SMALL = ("--shape", "x=1x3x9x11")


def test_every_command_takes_the_shape_of_an_input(
    run: Run, detector: Path, tmp_path: Path
) -> None:
    db = ("--db", tmp_path / "small.db")
    sizes = (*SMALL, "--shape", "x=1x3x13x7")
    code, out, err = run("tune", detector, *sizes, "--trials", "1", *db)
    assert code == 0, err
    for size in ("1x3x9x11", "1x3x13x7"):
        assert f"{detector} at {size}, all 1 convolution" in out
    assert f"`fastrun plan {detector} --shape x=1x3x13x7 --db" in out
    for words in (
        ("plan", detector),
        ("best", detector),
        ("show", detector),
        ("report", detector, "--out", tmp_path / "page"),
        ("bench", detector, "--peers", "none", "--rounds", "1"),
    ):
        further = () if words[0] == "show" else db
        code, out, err = run(*words, *SMALL, *further)
        assert code == 0, err
        assert words[0] in ("bench", "report", "plan") or "conv 1x3x9x11 8x3x3 s2" in out
        code, _, err = run(*words, *further)
        assert (code, err.count("sizes of input 'x' are open, (N, 3, H, W)")) == (2, 1), words


def test_arrays_and_pictures_give_the_sizes_that_a_model_leaves_open(
    run: Run, detector: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", normal(2, 3, 9, 11))
    Image.new("RGB", (15, 7)).save(tmp_path / "x.png")
    for name, shape in (("x.npy", "2x8x4x5"), ("x.png", "1x8x3x7")):
        words = ("run", detector, "--input", tmp_path / name, "--policy", "heuristic")
        code, out, err = run(*words)
        assert code == 0, err
        assert f"y: {shape}" in out


def test_one_command_takes_one_shape(run: Run, detector: Path) -> None:
    code, _, err = run("plan", detector, *SMALL, "--shape", "x=1x3x13x7")
    assert code == 2
    assert "2 shapes of inputs are given: this command takes one" in err


def test_classes_have_the_names_of_a_file(run: Run, classifier: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(1, 3, 12, 16))
    words = ("run", classifier, "--input", tmp_path / "x.npy", "--policy", "heuristic")
    _, out, _ = run(*words)
    classes = load_network(classifier).shape("y")[-1]
    best = re.findall(r"^ *(\d+) ", out, re.MULTILINE)[0]
    (tmp_path / "names.txt").write_text("\n".join(f"kind {i}" for i in range(classes)))
    code, out, err = run(*words, "--labels", tmp_path / "names.txt")
    assert code == 0, err
    assert re.search(rf"^ *{best} +kind {best} ", out, re.MULTILINE)


def test_an_export_says_what_it_wrote(run: Run, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, remarks = run("export", classifier, "-o", out, "--name", "net")
    assert code == 0
    assert f"{out}/libnet.so" in said
    assert "rms error" in said.split("native: ")[1].splitlines()[0]
    (remark,) = remarks.splitlines()
    assert remark.startswith("fastrun: ")
    assert "nothing is tuned here" in remark
    code, said, remarks = run(
        "export", classifier, "-o", tmp_path / "w", "--target", "x86-64-v2", "--system", "windows"
    )
    assert code == 0
    assert said.endswith("not run: it is for windows\n")
    code, _, remarks = run("export", classifier, "-o", tmp_path / "no", "--target", "sparc")
    assert code == 2
    assert "no target 'sparc'" in remarks
