"""Every command of README and docs is executed in this process, shortened where it is long.

`SHORT` says what takes the place of what; `NOT_HERE` names the rest, with the reason. Commands that
become the same are executed once. test_cli and test_exits start commands as processes.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from _pytest.mark import ParameterSet
from PIL import Image

from fastrun.graph.zoo import NAMES
from fastrun.main import main, parsers
from tests.docs.test_docs import PAGES, ROOT, commands
from tests.support.commands import fresh_cache, short_finals
from tests.support.graph_models import model, node, normal

pytestmark = pytest.mark.slow

PROBLEM = "conv 1x8x8x8 8x3x3 s1 p1 bias relu"
SMALL = "small.onnx"

SHORT = {
    **dict.fromkeys(
        ("MODEL", "model.onnx", "efficientnet-lite0.onnx", "efficientnet-lite0", *NAMES), SMALL
    ),
    "vgg16": PROBLEM,
    **dict.fromkeys(("efficientnet-lite0.plan", "squeezenet.plan"), "small.plan"),
    "NAME": "direct",
    "3x3": "64@56",
    "x=1x3x640x640": "x=1x3x16x16",
}
"""What is taken for a word of a command; `show` has the names of built-in networks as they are."""

PREPARED = (
    ("tune", SMALL, "--trials", "2"),
    ("plan", SMALL, "--save", "small.plan"),
    ("db", "export", "records.jsonl.gz"),
)
"""Shortened commands on which others build; they are executed first."""

NOT_HERE = {
    r"fastrun demo": "takes minutes: test_cli runs it with a small budget",
    r"fastrun bench --processes 3": "takes minutes: test_benchmarks has three small processes",
    r"fastrun (dashboard|worker)\b.*": "serves until it is stopped: test_storage, test_fleet",
    r"fastrun tune .* --calibrate .*": "takes minutes: tests/tuner/networks/test_precision",
    r"fastrun tune .* --device .*": "needs a board or an emulator: test_device",
    r"fastrun report --machine FINGERPRINT": "needs the records of a device",
    r"fastrun tune .* --workers .*": "needs a scheduler: test_fleet",
    r"fastrun compare-search .*": "needs a space measured whole: test_replay",
    r"fastrun (--version|help COMMAND|completion \w+)": "test_command_line",
    r"fastrun bench .*--paper .*": "measures large layers: test_papers",
    r"fastrun bench --layers": "all layers: test_benchmarks runs one",
    r"make (demo|docs)": "their commands: test_cli, test_reference",
    r"make (test|check|lint|.venv/test)": "runs this test, or sets up for it",
    r"make notebooks": "test_notebooks runs all with small budgets",
    r"make results|python -m fastrun\.benchmarks\.results .*": "takes hours: test_results, --quick",
    r"python -m fastrun\.benchmarks\.experiments\..*": "takes minutes: test_experiments, --quick",
    r"python -m fastrun\.benchmarks\.pretuned.*": "changes the package: test_pretuned",
    r"python -m fastrun\.benchmarks\.unseen.*": "needs torch: test_unseen",
    r"python -m fastrun\.benchmarks\.precision.*": "needs other engines: test_precision",
    r"python -m pytest .*": "a part of test_conformance",
    r"python examples/efficientnet_lite0.py": "fetches weights, needs torch: test_efficientnet",
    r"python examples/kernel_tuner_simulation.py .*": "needs kernel-tuner: test_examples",
    r"python benchmarks/experiments/overheads.py": "measures for minutes",
}


def shown() -> list[str]:
    """Every command once, in the order of the pages; no mere names of commands in running text."""
    found = dict.fromkeys(command for page in PAGES for command in commands(page))
    alone = {"doctor", "report", "dashboard", "demo"}
    names = {f"fastrun {name}" for name in parsers()[1] if name not in alone}
    return [command for command in found if command not in names]


def reason(command: str) -> str:
    """Why a command is not executed here, if so."""
    return next((why for kind, why in NOT_HERE.items() if re.fullmatch(kind, command)), "")


def shortened(command: str) -> tuple[str, ...]:
    """The words to execute: small targets and budgets where the shown ones take long."""
    words = shlex.split(command)[1:]
    if words[0] != "show" or words[1] not in NAMES:
        words = [SHORT.get(word, word) for word in words]
    if words[0] == "tune":
        if "--seconds" in words:
            del words[words.index("--seconds") :]
        if words[2:3] != [PROBLEM]:  # `PREPARED` has tuned the network alone
            words[1] = PROBLEM
        words += ["--trials", "2"]
    if words[0] == "bench":
        if "--peers" in words:
            del words[words.index("--peers") :]
        words += ["--peers", "none", "--rounds", "2"]
    if words[0] in ("tune", "bench"):
        words = [PROBLEM if word.startswith("conv ") else word for word in words]
    return tuple(words)


def distinct() -> list[ParameterSet]:
    """Shortened commands that differ, each by the first one shown that becomes it."""
    done, found = {*PREPARED}, []
    for command in shown():
        words = () if reason(command) else shortened(command)
        if words and words not in done:
            done.add(words)
            found.append(pytest.param(words, id=command))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder and a cache with what the pages take for granted: a model, tuned, and its inputs."""
    made = tmp_path_factory.mktemp("shown")
    nodes = [
        node("Conv", "x v", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "y"),
    ]
    weights = {"v": normal(8, 3, 3, 3)}
    onnx.save(model(nodes, weights, shape=(1, 3, 16, 16)), made / SMALL)
    onnx.save(model(nodes, weights, shape=("N", 3, "H", "W")), made / "detector.onnx")
    for name in ("x.png", "coffee.png", "photo.jpg"):
        Image.new("RGB", (20, 18), (90, 120, 200)).save(made / name)
    shutil.copytree(made, made / "pictures", ignore=shutil.ignore_patterns("*.onnx", "pictures"))
    np.save(made / "x.npy", normal(1, 3, 16, 16))
    (made / "imagenet.txt").write_text("".join(f"class {i}\n" for i in range(8)))
    with pytest.MonkeyPatch.context() as patch:
        fresh_cache(made / "cache", patch)
        short_finals(patch)
        patch.chdir(made)
        for words in PREPARED:
            assert main(words) == 0
        for name in ("other.db", "boards.db", "old.db"):
            shutil.copy(made / "cache" / "fastrun.db", made / name)
        yield made


@pytest.mark.parametrize("words", distinct())
def test_command_works(
    words: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if {"--threads", "--threads-per-trial"} & {*words} and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    if "--help" not in words:
        assert main(words) == 0
        assert capsys.readouterr().out
        return
    for name in parsers()[1] if words[0] == "COMMAND" else words[:1]:
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0


def test_all_else_has_a_reason_that_is_still_needed() -> None:
    found = shown()
    assert len(found) >= 60
    for kind in NOT_HERE:
        assert any(re.fullmatch(kind, command) for command in found), kind
    for why in NOT_HERE.values():
        for name in re.findall(r"test_\w+", why):
            assert list((ROOT / "tests").rglob(f"{name}.py")), name
