"""Compiles modules for other processors in a process of its own, which LLVM may end.

`python -m fastrun.kernels.native.apart` reads pickled (IR, processor) pairs and writes the objects.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.native.compile import CompileError, compile_object


def compile_all(modules: Sequence[tuple[str, Cpu]]) -> list[bytes]:
    """An object for each module.

    Raises:
        CompileError: LLVM refuses a module, or its process dies; the message has LLVM's last line.
    """
    path = os.pathsep.join(entry or os.curdir for entry in sys.path)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fastrun.kernels.native.apart"],
        env={**os.environ, "PYTHONPATH": path},
        input=pickle.dumps(list(modules)),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise CompileError(said[-1] if said else f"the compiler ended with {done.returncode}")
    objects: list[bytes] = pickle.loads(done.stdout)
    return objects


if __name__ == "__main__":
    given: list[tuple[str, Cpu]] = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(pickle.dumps([compile_object(*one, portable=True) for one in given]))
