"""Tile registers: every process that runs kernels has asked for them, or does without."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.native.compile import compile_object
from fastrun.kernels.native.library import Library
from tests.support.forking import child, code
from tests.support.tiles import BODY, DECLARATIONS, REFUSING, needs_refusal, needs_tiles


def run(object_code: bytes) -> None:
    """Load and call the code, as a process does that was sent it."""
    library = Library(object_code, ["zeros"])
    ctypes.CFUNCTYPE(None)(library.address("zeros"))()


def compiled() -> bytes:
    ir = f"{DECLARATIONS}\ndefine void @zeros() {{\n{BODY}\nret void\n}}"
    return compile_object(f'target triple = "{Cpu.host().triple}"\n{ir}', Cpu.host())


@needs_tiles
def test_a_new_process_may_use_tiles(tmp_path: Path) -> None:
    """It knows nothing of the processor: it has the code alone."""
    (tmp_path / "code.o").write_bytes(compiled())
    told = (
        "import pathlib, sys; from tests.kernels.test_tiles import run; "
        "run(pathlib.Path(sys.argv[1]).read_bytes())"
    )
    subprocess.run([sys.executable, "-c", told, str(tmp_path / "code.o")], check=True)


@needs_tiles
def test_a_forked_child_may_use_tiles() -> None:
    given = compiled()
    run(given)

    def work() -> bool:
        run(given)
        return True

    assert code(child(work)) == 0


def described(before: str = "") -> tuple[str, str]:
    """Features and fingerprint of this machine as a new process sees them after these lines."""
    told = f"{before}\nfrom fastrun.kernels.core.cpu import Cpu\nprint(Cpu.host().features)"
    said = subprocess.run(
        [sys.executable, "-c", f"{told}\nprint(Cpu.host().fingerprint)"],
        check=True,
        capture_output=True,
        text=True,
    )
    features, fingerprint = said.stdout.splitlines()
    return features, fingerprint


@needs_refusal
def test_where_the_system_refuses_the_processor_has_no_tiles() -> None:
    features, fingerprint = described(REFUSING)
    assert "+amx" not in features
    assert features == Cpu.host().features.replace("+amx", "-amx")
    if "+amx" not in Cpu.host().features:
        assert fingerprint == Cpu.host().fingerprint
