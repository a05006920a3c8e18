"""The built wheel works outside of the checkout, and beside a package called `kernels`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

import fastrun

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# The environments made here see what we depend on, but no editable install of a checkout.
DEPENDENCIES = str(Path(np.__file__).parents[1])
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")

OURS = """
import fastrun, fastrun.kernels.registry
assert "naive" in fastrun.kernels.registry.templates()
"""
THEIRS = """
import kernels
assert kernels.get_kernel.__module__.startswith("kernels.")
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def works(python: Path, *scripts: str) -> None:
    """Run scripts in one process, in a folder without packages."""
    code = f"import sys; sys.path.append({DEPENDENCIES!r})\n" + "".join(scripts)
    run(python, "-c", code, cwd=python.parent)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with its symbolic links, without what git ignores."""
    made = tmp_path_factory.mktemp("source") / "checkout"
    run("git", "clone", "-q", "--no-hardlinks", ROOT, made, cwd=made.parent)
    for changed in run("git", "ls-files", "-mo", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / changed).is_file():
            (made / changed).parent.mkdir(parents=True, exist_ok=True)
            (made / changed).write_bytes((ROOT / changed).read_bytes())
    return made


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    run(*PIP, "wheel", "--no-deps", "-w", source.parent, source, cwd=source.parent)
    (made,) = source.parent.glob(f"fastrun_toolkit-{fastrun.__version__}-*.whl")
    return made


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a clean environment."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "clean", cwd=tmp_path)
    return tmp_path / "clean/bin/python"


def test_the_wheel_holds_one_import_package(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fastrun"}
    missing = {
        f"fastrun/{path.relative_to(ROOT)}".replace("fastrun/fastrun", "fastrun")
        for top in ("fastrun", "kernels", "search_spaces", "graph", "tuner", "benchmarks")
        for path in (ROOT / top).rglob("*")
        if path.suffix in (".py", ".typed", ".json", ".html", ".md")
    } - {*names}
    assert not missing


def test_an_installed_wheel_tunes_a_layer(wheel: Path, python: Path, tmp_path: Path) -> None:
    run(*PIP, "--python", python, "install", "--no-deps", wheel, cwd=tmp_path)

    def ours(*words: str) -> str:
        variables = {"FASTRUN_CACHE": str(tmp_path / "cache"), "PYTHONPATH": DEPENDENCIES}
        return run(python.parent / "fastrun", *words, cwd=tmp_path, **variables)

    where = f"assert fastrun.__file__.startswith({str(tmp_path)!r})"
    works(python, OURS, where)
    problem = "conv 1x8x8x8 8x3x3 s1 p1 bias relu"
    assert problem in ours("tune", problem, "--trials", "4")
    assert json.loads(ours("best", problem, "--json"))
    layer = ("--layers", "ShuffleNetV2 58@28", "--peers", "none", "--rounds", "1")
    assert layer[1] in ours("bench", *layer)


def test_it_lives_beside_the_kernels_of_hugging_face(
    wheel: Path, source: Path, python: Path, tmp_path: Path
) -> None:
    """Installed in either order, both work; so does each where the other is uninstalled."""
    store = tmp_path / "store"
    fetch = [*PIP, "download", "--retries", "0", "--timeout", "20", "-d", str(store), "kernels"]
    fetched = subprocess.run(fetch, capture_output=True, text=True, timeout=300)
    if fetched.returncode:
        pytest.skip(f"no package to install beside: {fetched.stderr.strip().splitlines()[-1]}")

    def install(*words: str | Path) -> None:
        run(*PIP, "--python", python, "install", "--no-index", *words, cwd=tmp_path)

    def uninstall(name: str) -> None:
        run(*PIP, "--python", python, "uninstall", "-y", name, cwd=tmp_path)

    install("--find-links", store, "kernels")
    install("--no-deps", wheel)
    works(python, OURS, THEIRS)
    uninstall("fastrun-toolkit")
    works(python, THEIRS)
    uninstall("kernels")

    install("--no-deps", wheel)
    install("--find-links", store, "kernels")
    works(python, THEIRS, OURS)
    uninstall("kernels")
    works(python, OURS)

    # An editable install finds `fastrun` in the checkout, and no other folder of it.
    install("--find-links", store, "kernels")
    run(*PIP, "--python", python, "install", "--no-deps", "--editable", source, cwd=tmp_path)
    editable = f"assert fastrun.__file__.startswith({str(source)!r})"
    works(python, OURS, THEIRS, editable)
