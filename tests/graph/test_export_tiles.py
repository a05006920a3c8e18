"""Exported code with tile registers asks for them, and does not run where they are refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastrun.graph.aot import export as exporting
from fastrun.graph.aot.export import ExportError, export
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.processors import needs
from fastrun.kernels.native.apart import compile_all
from tests.support.graph_models import model, node, normal
from tests.support.tiles import BODY, DECLARATIONS, REFUSING, needs_refusal, needs_tiles

GRAPH = optimise(
    load_network(
        model(
            [node("Conv", "x w", "y", pads=[1, 1, 1, 1])],
            {"w": normal(16, 16, 3, 3)},
            shape=(1, 16, 9, 9),
        )
    )
)

RUN = """
import runpy, sys
import numpy as np
Net = runpy.run_path(sys.argv[1])["Net"]
net = Net(threads=2)
net.run(np.ones((1, 16, 9, 9), np.float32))
print(net.isa)
"""


@pytest.fixture(autouse=True)
def tiles_in_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel for a processor with tile registers uses one first."""

    def compiled(modules: Sequence[tuple[str, Cpu]]) -> list[bytes]:
        return compile_all([(_with_tiles(ir) if needs(cpu).tiles else ir, cpu)
                            for ir, cpu in modules])  # fmt: skip

    monkeypatch.setattr(exporting, "compile_all", compiled)


def _with_tiles(ir: str) -> str:
    begun = re.sub(r"(define [^{]*\{\n(?:\w+:\n)?)", rf"\1{BODY}", ir)
    new = (line for line in DECLARATIONS.splitlines() if line not in ir)
    return begun + "\n".join(new)


def ran(folder: Path, before: str = "") -> Any:
    """What a new process says that runs the network after these lines."""
    return subprocess.run(
        [sys.executable, "-c", before + RUN, str(folder / "net.py")],
        check=False, capture_output=True, text=True,
    )  # fmt: skip


@needs_tiles
@pytest.mark.parametrize("first", ["native", "x86-64-v4+amx"])
def test_a_library_asks_for_tiles(first: str, tmp_path: Path) -> None:
    export(GRAPH, tmp_path, [first, "x86-64-v4"], name="net")
    done = ran(tmp_path)
    assert (done.stdout, done.returncode) == (f"{first}\n", 0), done.stderr


@needs_tiles
@needs_refusal
def test_a_refused_library_runs_other_code_or_says_so(tmp_path: Path) -> None:
    export(GRAPH, tmp_path / "both", ["x86-64-v4+amx", "x86-64-v4"], name="net")
    done = ran(tmp_path / "both", REFUSING)
    assert (done.stdout, done.returncode) == ("x86-64-v4\n", 0), done.stderr
    export(GRAPH, tmp_path / "one", ["native"], name="net")
    assert "its system does not allow it" in ran(tmp_path / "one", REFUSING).stderr


def test_other_systems_go_without_tiles(tmp_path: Path) -> None:
    for system in ("windows", "macos"):
        with pytest.raises(ExportError, match=r"no tile registers .*: export for x86-64-v4.vnni"):
            export(GRAPH, tmp_path, ["x86-64-v4+amx"], name="net", system=system)
    if Cpu.host().machine == "x86_64":
        done = export(GRAPH, tmp_path, ["native"], name="net", system="windows")
        assert not needs(done.targets[0].cpu).tiles
