"""Folders of scratch files: their place, other users of the place, killed runs."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure import operands
from fastrun.tuner.measure.operands import Operands, Scratch, save

PROBLEM = ConvProblem.parse("conv 1x5x6x6 7x3x3 s1 p1 bias relu")
ROOT = Path(__file__).parents[3]

HOLD = """
import sys, time
from fastrun.tuner.measure.operands import Scratch
with Scratch() as scratch:
    print(scratch.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of TMPDIR."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def holder(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, sys.executable, "-c", HOLD], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def test_tmpdir_is_honoured_and_left_empty(place: Path) -> None:
    with Scratch() as scratch:
        assert scratch.folder.parent == place
        assert Operands.make(PROBLEM, scratch).folder.parent == scratch.folder
    assert not list(place.iterdir())


def test_a_folder_that_somebody_holds_stays_and_one_that_nobody_holds_goes(place: Path) -> None:
    with holder() as other:
        assert other.stdout
        folder = Path(other.stdout.readline().strip())
        with Scratch():
            assert folder.is_dir()
        other.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    with Scratch():
        assert not folder.exists()


def test_another_container_is_another_process(place: Path) -> None:
    """In a new namespace of process ids, which lacks those of this process."""
    words = ["unshare", "--pid", "--fork", "--mount-proc"]
    if not shutil.which(words[0]) or subprocess.run([*words, "true"], check=False).returncode:
        pytest.skip("needs the right to make process namespaces")
    with Scratch() as ours:
        folder = ours.folder
        with holder(*words) as other:
            assert other.stdout
            assert other.stdin
            theirs = Path(other.stdout.readline().strip())
            assert folder.is_dir()
            with Scratch():
                assert theirs.is_dir()
            other.stdin.close()
        assert not theirs.exists()


def test_what_is_not_ours_is_left_alone(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "file").write_text("kept")
    (place / "fastrun-symlink1").symlink_to(elsewhere)
    (place / "fastrun-regular1").write_text("kept")
    (place / "fastrun-of somebody").mkdir()
    before = sorted(place.iterdir())
    with Scratch():
        pass
    assert sorted(place.iterdir()) == before
    assert [x.name for x in elsewhere.iterdir()] == ["file"]


def test_a_small_place_is_passed_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's shared memory has 64 MB."""
    usage = namedtuple("usage", "free")
    small = {place: 1000, Path("/dev/shm"): 64 << 20}
    monkeypatch.setattr(
        operands.shutil, "disk_usage", lambda root: usage(small.get(Path(root), 1 << 40))
    )
    with Scratch() as scratch:
        assert scratch.room(100).parent == place
        assert scratch.room(100 << 20).parent not in small
        with pytest.raises(OSError, match=r"room for 2 TiB|room for 2048 GiB") as refusal:
            scratch.room(2 << 40)
    assert refusal.value.errno == errno.ENOSPC
    assert f"{place} has 1000 B" in str(refusal.value)
    assert "TMPDIR" in str(refusal.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_names_the_file() -> None:
    with pytest.raises(OSError, match="No space left") as refusal:
        save(Path("/dev/full"), np.zeros(1 << 20))
    assert refusal.value.filename == "/dev/full"


def test_a_place_that_cannot_be_written_is_passed_over(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place)
    with Scratch() as scratch:
        assert scratch.folder.parent != place
