"""The command line itself: version, help, completion, streams, narrow terminals, advice."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

import fastrun
from fastrun.graph.core.errors import InputError
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import COMMANDS, main
from fastrun.options import new_folder
from fastrun.tuner.store.standing import Standing
from fastrun.tuner.terminal.display import standings_table
from tests.support.commands import fresh_cache, short_finals
from tests.support.graph_models import model, node, normal

ROOT = Path(__file__).parents[2]
P = "conv 1x8x8x8 8x3x3 s1 p1 bias relu"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    fresh_cache(tmp_path / "cache", monkeypatch)
    short_finals(monkeypatch)

    def call(*words: str | Path) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as leaving:
            code = int(str(leaving.code or 0))
        return code, *capsys.readouterr()

    return call


def test_it_says_its_version(run: Run) -> None:
    assert run("--version") == (0, f"fastrun {fastrun.__version__}\n", "")


def test_help_is_a_command_too(run: Run) -> None:
    assert run("help") == run("--help")
    assert run("help", "tune") == run("tune", "--help")
    code, _, said = run("help", "tuna")
    assert (code, said) == (2, "fastrun: error: no command 'tuna': did you mean 'tune'?\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_code(run: Run, shell: str) -> None:
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_ARGCOMPLETE" in out
    assert "fastrun" in out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fastrun qu", {"quantise "}),
        ("fastrun tune resnet18 --see", {"--seed "}),
        ("fastrun completion z", {"zsh "}),
        ("fastrun ", set(COMMANDS)),
    ],
)
def test_a_line_is_completed(tmp_path: Path, line: str, expected: set[str]) -> None:
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    found = tmp_path / "found"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(found),
    }
    words = [sys.executable, "-m", "fastrun"]
    subprocess.run(words, env=environment, capture_output=True, timeout=60, check=False)
    assert expected <= {*found.read_text().split("\n")}


@pytest.mark.slow
def test_results_and_progress_go_apart(run: Run) -> None:
    code, out, said = run("tune", P, "--trials", "2", "--json")
    (document,) = json.loads(out)["runs"]
    assert code == 0
    assert document["trials"] >= 2
    (problem,) = document["problems"]["hot"]
    assert problem["problem"] == P
    assert 0 < problem["best"] <= problem["heuristic"]
    assert "new best" in said
    assert "next: `fastrun" in said
    code, out, said = run("tune", P, "--trials", "3", "--quiet")
    assert (code, said) == (0, "")
    assert P in out


@pytest.mark.parametrize("width", [60, 75, 90, 110, 150])
def test_the_verdict_stays_on_a_narrow_terminal(width: int) -> None:
    text = io.StringIO()
    console = Console(file=text, width=width)
    found = Standing(ConvProblem.parse(P), 2, None, None, None)
    standings_table(console, [found], 1e11)
    assert "verdict" in text.getvalue()
    assert "not measured" in " ".join(text.getvalue().split())
    assert ("GFLOP" in text.getvalue()) == (width >= 120)


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("model.pt", r"PyTorch.*fastrun\.from_torch"),
        ("model.tflite", "tf2onnx.convert --tflite"),
        ("picture.JPG", "an input, no model"),
        ("model.h5", "TensorFlow.*tf2onnx"),
    ],
)
def test_files_of_others_get_advice(run: Run, tmp_path: Path, file: str, advice: str) -> None:
    (tmp_path / file).write_bytes(b"anything")
    code, _, said = run("plan", tmp_path / file)
    assert code == 2
    assert re.search(advice, said)
    assert said.count("\n") == 1


def classifier() -> onnx.ModelProto:
    nodes = [node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "y")]
    return model(nodes, shape=(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((1, 8, 8, 4), r"transpose\(0, 3, 1, 2\)"),
        ((4, 8, 8), r"x\[None\]"),
        ((8, 8, 4), r"transpose\(2, 0, 1\)\[None\]"),
        ((1, 4, 8, 9), r"instead of [^:]*$"),
    ],
)
def test_arrays_in_other_orders_get_advice(shape: tuple[int, ...], advice: str) -> None:
    network = fastrun.load(classifier(), policy="heuristic")
    with pytest.raises(InputError, match=advice):
        network.run({"x": np.zeros(shape, np.float32)})


def test_classes_have_names(run: Run, tmp_path: Path) -> None:
    onnx.save(classifier(), tmp_path / "net.onnx")
    x = np.zeros((1, 4, 8, 8), np.float32)
    x[:, 2] = 5
    np.save(tmp_path / "x.npy", x)
    names = ["no", "nor this", "this one", "nor that"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "names.json").write_text(
        json.dumps({str(i): ["n1", x] for i, x in enumerate(names)})
    )
    words = ("run", tmp_path / "net.onnx", "--input", tmp_path / "x.npy", "--top", "1")
    assert "this one" in run(*words, "--labels", tmp_path / "names.txt")[1]
    assert "n1, this one" in run(*words, "--labels", tmp_path / "names.json")[1]
    (tmp_path / "bad.json").write_text("{")
    code, _, said = run(*words, "--labels", tmp_path / "bad.json")
    assert (code, said.count("\n")) == (2, 1)
    assert "no list of names" in said
    (tmp_path / "few.txt").write_text("no\nnor this\n")
    code, out, said = run(*words, "--labels", tmp_path / "few.txt")
    assert (code, out) == (2, "")
    assert "2 names of classes, the outputs have 1x4" in said


@pytest.mark.parametrize("words", [("plan", "--save"), ("run", "--input", "x.npy", "--output")])
def test_a_missing_folder_is_found_before_anything_runs(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    code, out, said = run(words[0], "resnet50", *words[1:], tmp_path / "none" / "file.npz")
    assert (code, out) == (2, "")
    assert "there is no folder" in said


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("plan", "resnet50", "--trace"), "/proc/run.json"),
        (("run", "resnet50", "--input", "x.npy", "--output"), "/proc/y.npz"),
        (("export", "resnet50", "-o"), "/proc/none/out"),
        (("report", "resnet50", "--out"), "/proc/none"),
        (("export", "resnet50", "-o"), "file"),
        (("report", "--out"), "file/within"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_anything_runs(
    run: Run, tmp_path: Path, words: tuple[str, ...], place: str
) -> None:
    (tmp_path / "file").write_text("")
    code, out, said = run(*words, tmp_path / place)
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert "cannot be written: " in said or "is a file, no folder" in said


def test_a_folder_to_be_made_stays_unmade_until_it_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert new_folder(str(folder)) == folder
    assert not list(tmp_path.iterdir())


def test_built_in_networks_say_that_their_weights_are_random(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(1, 3, 224, 224))
    said = run("run", "squeezenet1.1", "--input", tmp_path / "x.npy")[2]
    assert "random weights" in said


def test_boxes_chosen_by_a_plugin_get_advice(run: Run, tmp_path: Path) -> None:
    m = model([node("Relu", "x", "r"), node("EfficientNMS_TRT", "r", "y", domain="TRT")])
    m.opset_import.append(onnx.helper.make_opsetid("TRT", 1))
    onnx.save(m, tmp_path / "net.onnx")
    code, _, said = run("plan", tmp_path / "net.onnx")
    assert code == 2
    assert "EfficientNMS_TRT" in said
    assert "boxes and scores" in said
