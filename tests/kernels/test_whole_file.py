"""A file appears complete or not at all."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from fastrun.kernels.core.whole_file import whole_file, write_whole
from tests.support.forking import child, code


def test_a_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert path.read_text() == "new"
    assert [x.name for x in tmp_path.iterdir()] == ["a.txt"]


def test_a_disk_without_room_leaves_no_part_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    def writes() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(OSError, match=r"a\.bin"):
            write_whole(path, b"x" * 1000)
        return True

    assert code(child(writes)) == 0
    assert not list(tmp_path.iterdir())


def test_rights_are_those_of_a_file_written_in_place(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.txt", tmp_path / "b.txt"

    def writes() -> bool:
        os.umask(0o077)
        write_whole(path, "text")
        plain.write_text("text")
        return path.stat().st_mode == plain.stat().st_mode

    assert code(child(writes)) == 0
    path.chmod(0o640)
    write_whole(path, "other")
    assert path.stat().st_mode & 0o777 == 0o640


def test_links_stay_links_and_devices_devices(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "text"
    write_whole(Path("/dev/null"), "text")
    assert not Path("/dev/null").is_file()
