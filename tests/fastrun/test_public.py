"""The public module: complete, typed, light, and found by its old name."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastrun
import fastrun.tuner

ROOT = Path(__file__).parents[2]


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", fastrun.__all__)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    assert name in dir(fastrun)
    assert getattr(fastrun, name).__doc__


def test_completion_of_the_tuner_lists_the_public_names_alone() -> None:
    listed = [name for name in dir(fastrun.tuner) if not name.startswith("_")]
    assert listed == sorted({*fastrun.__all__} - {"__version__"})


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tunes'"):
        fastrun.tunes  # noqa: B018


def test_type_checkers_find_the_names_that_python_finds() -> None:
    tree = ast.parse((ROOT / "fastrun/__init__.py").read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in typed.body for alias in node.names}
    assert homes.pop("plot") == "fastrun"
    assert homes == fastrun._HOMES
    assert {*homes, "plot", "__version__"} == {*fastrun.__all__}
    assert (ROOT / "fastrun/py.typed").is_file()


def test_importing_it_is_light() -> None:
    """Only what Python itself needs: a script that asks for the version waits for nothing."""
    code = (
        "import sys; before = {*sys.modules}; import fastrun;"
        "new = {m.split('.')[0] for m in {*sys.modules} - before} - sys.stdlib_module_names;"
        "assert new == {'fastrun'}, new"
    )
    assert python(code, ROOT).stderr == ""


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {fastrun.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_scripts_in_the_root_of_the_checkout_may_say_tuner() -> None:
    code = "import fastrun, tuner; assert tuner.load is fastrun.load; tuner.Database"
    assert python(code, ROOT).stderr == ""


def test_a_copy_without_symbolic_links_says_what_to_do(tmp_path: Path) -> None:
    """Git writes a text file in place of a link where the file system has none."""
    shutil.copytree(ROOT / "fastrun", tmp_path / "fastrun", symlinks=True)
    for link in [path for path in (tmp_path / "fastrun").iterdir() if path.is_symlink()]:
        target = str(link.readlink())
        link.unlink()
        link.write_text(target)
    last = python("import fastrun", tmp_path).stderr.splitlines()[-1]
    assert last.startswith("ImportError: fastrun/kernels is no folder: ")
    assert "git config core.symlinks true" in last
