"""Programs of all kinds load and run a network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipapp
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.graph_models import model, node, normal

ROOT = Path(__file__).parents[3]

# What each host does with `work`, which loads a network on two threads, and runs it.
WORK = """
import numpy as np, os, sys
from fastrun.graph.frontend.importer import import_onnx
from fastrun import load
def work(model=MODEL):
    executable = load(model, 2)
    return executable.run({"x": np.ones((1, 4, 16, 16), "f")})["y"].shape
"""
PLAIN = "print(work())"
HOSTS = {
    "a thread": """
import threading
thread = threading.Thread(target=lambda: print(work()))
thread.start(); thread.join()
""",
    "a running loop": """
import asyncio
async def main():
    shapes = await asyncio.gather(*(asyncio.to_thread(work) for _ in range(3)))
    print(*{*shapes, work()})
asyncio.run(main())
""",
    "daemonic children": """
import multiprocessing, threading
context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=lambda: queue.put(work()), daemon=True)
child.start(); print(queue.get(timeout=100)); child.join()
""",
    "a program without a Python to start": "sys.executable = '/usr/sbin/uwsgi'; print(work())",
    "a folder that is gone": """
import tempfile
folder = tempfile.mkdtemp(); os.chdir(folder); os.rmdir(folder); print(work())
""",
    "a relative cache and a change of folder": """
import tempfile
os.environ["FASTRUN_CACHE"] = "cache"
folder = tempfile.mkdtemp(); os.chdir(folder); first = work(); os.chdir("cache"); print(work())
""",
    "nowhere to write": """
import warnings; warnings.simplefilter("ignore")
for name in ("FASTRUN_CACHE", "TMPDIR"): os.environ[name] = "/proc/self/nothing"
print(work())
""",
    "no standard streams": """
shape = str(work()).encode()
out = os.dup(1)
sys.stdin = sys.stdout = sys.stderr = None
for number in range(3): os.close(number)
os.environ["FASTRUN_CACHE"] += "2"
work(); os.write(out, shape)
""",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    convolution = node("Conv", "x a", "y", pads=[1] * 4)
    source = model([convolution], {"a": normal(8, 4, 3, 3)}, shape=(1, 4, 16, 16))
    path.write_bytes(source.SerializeToString())
    return path


def said(command: list[str], cwd: Path, cache: Path, text: str = "") -> str:
    environment: Mapping[str, str] = {
        **os.environ,
        "FASTRUN_CACHE": str(cache),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, input=text, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("host", HOSTS)
def test_hosts(host: str, saved: Path, tmp_path: Path) -> None:
    script = tmp_path / "my script.py"
    script.write_text(WORK.replace("MODEL", repr(str(saved))) + HOSTS[host])
    assert said([sys.executable, str(script)], tmp_path, tmp_path / "cache") == "(1, 8, 16, 16)"


def test_programs_that_are_no_files(saved: Path, tmp_path: Path) -> None:
    text = WORK.replace("MODEL", repr(str(saved))) + PLAIN
    app = tmp_path / "app"
    app.mkdir()
    (app / "__main__.py").write_text(text)
    zipapp.create_archive(app, tmp_path / "app.pyz")
    commands = [["-"], ["-c", text], ["app.pyz"], ["-m", "app"]]
    for command in commands:
        output = said([sys.executable, *command], tmp_path, tmp_path / "cache", text)
        assert output == "(1, 8, 16, 16)", command
