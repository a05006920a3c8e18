"""What a newcomer meets: old terminals, old processors, folders that cannot be written."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fastrun.graph.networks import load_network
from fastrun.graph.reference import interpreter as reference
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import main
from fastrun.processor import shortcoming
from fastrun.tuner.networks.load import load
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import Progress
from fastrun.tuner.search.problem_search import ProblemSearch
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.board import Board
from tests.support.execution import relative_error
from tests.support.graph_models import model, node, normal
from tests.support.synthetic import records
from tests.tuner.report.test_report import MACHINE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
P = "conv 1x8x8x8 8x3x3 s1 p1"


def fastrun(
    folder: Path, *words: str, **environment: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with changes to the environment."""
    changes = {name: str(value) for name, value in environment.items()}
    return subprocess.run(
        [sys.executable, "-m", "fastrun", *words],
        capture_output=True, text=True, cwd=folder, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **changes},
    )  # fmt: skip


def test_a_dumb_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, _environ={"TERM": "dumb"})
    search = ProblemSearch(ConvProblem.parse(P), 1, Cpu.host())
    search.replay(records([ConvProblem.parse(P)], trials=2))
    with Board(console, "a problem", Budget(seconds=9.0)) as board:
        board(Progress("done", [search], None, 5, 9.0, 0.0))
    told = capsys.readouterr().err + text.getvalue()
    assert "done: 5 trials" in told
    assert "\x1b" not in told


def test_no_colours_where_they_are_not_wanted() -> None:
    """NO_COLOR, which leaves bold type, and output that is no terminal, which leaves nothing."""
    term = {"TERM": "xterm-256color"}
    wishes: list[tuple[dict[str, str], bool, set[str]]] = [
        (term, True, {"colour", "type"}),
        ({**term, "NO_COLOR": "1"}, True, {"type"}),
        (term, False, set()),
    ]
    p = ConvProblem.parse(P)
    for environment, terminal, kinds in wishes:
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=200, _environ=environment)
        search = ProblemSearch(p, 1, Cpu.host())
        search.replay(records([p], trials=2))
        with Board(console, "a problem", Budget(seconds=9.0)) as board:
            board(Progress("done", [search], None, 5, 9.0, 0.0))
        codes = set(re.findall(r"\x1b\[[\d;]*m", text.getvalue()))
        assert {_kind(code) for code in codes} == kinds


def _kind(code: str) -> str:
    """What an escape sequence sets: a colour, or bold and the like."""
    numbers = map(int, filter(None, code[2:-1].split(";")))
    return "colour" if any(30 <= n < 50 or n >= 90 for n in numbers) else "type"


def test_nothing_is_said_in_characters_that_the_terminal_lacks(tmp_path: Path) -> None:
    """Tables in ASCII, as over an old connection."""
    ascii = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    for words in (["tune", P, "--trials", "1"], ["best", P]):
        done = fastrun(tmp_path, *words, "--db", "x.db", **ascii)
        assert done.returncode == 0, done.stderr
        assert P in done.stdout
        assert done.stdout.isascii()


def test_a_processor_without_multiply_adds_is_told_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = replace(
        Cpu.host(), triple="x86_64-unknown-linux-gnu", features="+sse4.2,-fma", lanes=4,
        registers=16, fma=False,
    )  # fmt: skip
    assert shortcoming(old).startswith("no fused multiply-add")
    assert not shortcoming(Cpu.neon())
    assert not shortcoming(replace(old, features="+avx2,+fma", fma=True))
    monkeypatch.setattr(Cpu, "host", lambda: old)
    monkeypatch.setattr("fastrun.tuner.machine.probe.probe", lambda refresh: MACHINE)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "no fused multiply-add" in out
    assert "4 floats wide" in out


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the old processor is an x86-64")
def test_a_network_is_right_on_a_processor_without_avx(monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(
        Cpu.host(), name="nehalem", features="-avx,-avx2,-fma,-avx512f", lanes=4, registers=16
    )
    monkeypatch.setattr(Cpu, "host", lambda: old)
    nodes = [node("Conv", "x w", "c", pads=[1] * 4), node("Relu", "c", "y")]
    small = model(nodes, {"w": normal(8, 4, 3, 3)})
    x = normal(1, 4, 8, 8)
    network = load(small, policy="heuristic")
    expected = reference.run(load_network(small), {"x": x})["y"]
    assert relative_error(network.run({"x": x})["y"], expected) < 2e-5


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file stands where folders should be, which stops root as well."""
    (tmp_path / "file").write_text("")
    for words, code, told in (
        (["best", P], 0, "heuristic"),
        (["db", "info"], 0, "not there yet"),
        (["tune", P, "--trials", "1"], 2, "FASTRUN_CACHE"),
        (["report"], 2, "not there yet"),
    ):
        done = fastrun(tmp_path, *words, FASTRUN_CACHE=tmp_path / "file" / "cache")
        assert done.returncode == code, done.stderr
        assert told in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert code == 0 or done.stderr.count("\n") == 1


def test_a_report_that_cannot_be_written_says_where_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastrun.tuner.machine.probe.probe", lambda: MACHINE)
    monkeypatch.chdir(tmp_path)
    with Database(tmp_path / "x.db") as database:
        for record in records([ConvProblem.parse(P)]):
            database.add(record)
    (tmp_path / "reports").write_text("")
    assert main(["report", "--db", "x.db"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "--out DIR" in told
    assert main(["report", "--db", "x.db", "--out", "elsewhere"]) == 0
    assert (tmp_path / "elsewhere" / "report.html").is_file()
