"""The built wheel works outside the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


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


def test_an_installed_wheel_tunes_a_layer(tmp_path: Path) -> None:
    """In a clean environment that sees the dependencies but not this checkout."""
    source = tmp_path / "source"
    run("git", "clone", "-q", "--no-hardlinks", ROOT, source, cwd=tmp_path)
    for changed in run("git", "ls-files", "-mo", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / changed).is_file():
            (source / changed).parent.mkdir(parents=True, exist_ok=True)
            (source / changed).write_bytes((ROOT / changed).read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    run(*pip, "wheel", "--no-deps", "-w", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("fastrun_toolkit-*.whl")
    clean = tmp_path / "clean"
    run(sys.executable, "-m", "venv", "--without-pip", clean, cwd=tmp_path)
    run(*pip, "--python", clean / "bin/python", "install", "--no-deps", wheel, cwd=tmp_path)
    (packages,) = (clean / "lib").glob("python3*/site-packages")
    # The folder of the dependencies is only appended, so its own .pth files, among them the
    # editable install of the checkout, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(clean / "bin/python", "-c", "import fastrun; print(fastrun.__file__)", cwd=tmp_path)
    assert where.startswith(str(clean))
    cache = {"FASTRUN_CACHE": str(tmp_path / "cache")}
    problem = "conv 1x8x8x8 8x3x3 s1 p1 bias relu"
    out = run(clean / "bin/fastrun", "tune", problem, "--trials", "4", cwd=tmp_path, **cache)
    assert problem in out
    best = run(clean / "bin/fastrun", "best", problem, "--json", cwd=tmp_path, **cache)
    assert json.loads(best)
    layer = ("--layers", "ShuffleNetV2 58@28", "--peers", "none", "--rounds", "1")
    out = run(clean / "bin/fastrun", "bench", *layer, cwd=tmp_path, **cache)
    assert "ShuffleNetV2 58@28" in out
