"""Tuning under limits, by other users, and in processes of all kinds."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastrun.tuner.measure.ulimits import lower, small_limits

ROOT = Path(__file__).parents[3]
HANG_SECONDS = 600  # what takes longer hangs, on any machine

# A job through all processes, as tuning does it.
BODY = """
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.job import Compiled, Job
from fastrun.tuner.measure.operands import Operands, Scratch
from fastrun.tuner.measure.sandbox import Compiler, Sandbox

def go():
    p, cores = ConvProblem.parse("conv 1x5x6x6 7x3x3 s1 p1"), Cores.split(1)
    with Scratch() as scratch, Compiler(cores, Cpu.host()) as compiler, Sandbox(cores) as sandbox:
        operands = Operands.make(p, scratch)
        program = compiler.submit(operands, "naive(layout=NCHW)").result()
        assert isinstance(program, Compiled), program
        return sandbox.submit(Job(program, operands)).result().outcome
"""
DAEMON = """
import multiprocessing
def answer(queue): queue.put(go())
if __name__ == "__main__":
    context = multiprocessing.get_context("METHOD")
    queue = context.Queue()
    context.Process(target=answer, args=(queue,), daemon=True).start()
    print(queue.get())
"""
HOSTS = {
    "a script without a main guard": "print(go())",
    "a daemon by fork": DAEMON.replace("METHOD", "fork"),
    "a daemon by spawn": DAEMON.replace("METHOD", "spawn"),
    "a fork": "import os\nif not os.fork(): print(go(), flush=True); os._exit(0)\nos.wait()",
    "a thread that ends": (
        "import threading\nthread = threading.Thread(target=lambda: print(go()))\n"
        "thread.start(); thread.join()"
    ),
    "an event loop": "import asyncio\nasync def main(): print(go())\nasyncio.run(main())",
    "a folder that is gone": (
        "import os, tempfile\nfolder = tempfile.mkdtemp(); os.chdir(folder); os.rmdir(folder)\n"
        "print(go())"
    ),
    "no standard files": (
        "import os\nsaid = os.dup(1)\nfor fd in (0, 1, 2): os.close(fd)\n"
        "os.write(said, str(go()).encode())"
    ),
}


def python(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*words], capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_any_process_can_measure(host: str, tmp_path: Path) -> None:
    script = tmp_path / "a script.py"
    script.write_text(BODY + HOSTS[host])
    done = python(sys.executable, str(script), cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "correct"), done.stderr


def test_a_script_from_standard_input_can_measure(tmp_path: Path) -> None:
    done = python(sys.executable, "-", input=BODY + HOSTS["a daemon by fork"], cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "correct"), done.stderr


def limited(limits: str, body: str = "print(go())") -> subprocess.CompletedProcess[str]:
    """Run under hard limits, which bind root too."""
    plain = ["setpriv", "--bounding-set=-sys_resource"] if os.getuid() == 0 else []
    if plain and not shutil.which("setpriv"):
        plain = []
    command = f'ulimit {limits}; exec "$0" -c "$1"'
    return python(*plain, "bash", "-c", command, sys.executable, BODY + body, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("limits", ["-c 0", "-v 16000000", "-n 64", "-t 600", "-S -v 16000000"])
def test_hard_limits_are_kept(limits: str) -> None:
    done = limited(limits)
    assert (done.returncode, done.stdout.strip()) == (0, "correct"), done.stderr


def test_a_limit_that_is_too_small_is_named() -> None:
    """With only three open files besides the standard ones no process can be started."""
    body = """
import resource
from fastrun.tuner.measure.sandbox import WorkerDied
with Sandbox(Cores.split(1)) as sandbox:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6))
        sandbox.restart()
        sandbox.call(go, (), 10.0)
    except WorkerDied as error:
        print(error)
"""
    done = limited("-c 0", body)
    assert "Too many open files" in done.stdout, done.stderr
    assert "limits (ulimit): -n 6" in done.stdout


def test_limits_are_lowered_never_raised() -> None:
    code = """
import resource
from fastrun.tuner.measure.ulimits import lower, small_limits
resource.setrlimit(resource.RLIMIT_CORE, (1000, 2000))
lower(resource.RLIMIT_CORE, 5000)
assert resource.getrlimit(resource.RLIMIT_CORE) == (1000, 2000)
lower(resource.RLIMIT_CORE, 10)
assert resource.getrlimit(resource.RLIMIT_CORE) == (10, 2000)
resource.setrlimit(resource.RLIMIT_CPU, (500, 900))
print(small_limits())
"""
    assert "-t 500 s" in python(sys.executable, "-c", code, cwd=ROOT).stdout
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    lower(resource.RLIMIT_NPROC, 1 << 40)
    assert resource.getrlimit(resource.RLIMIT_NPROC) == before
    assert "-u" not in small_limits() or before[0] < 1000
